"""Programs that the launcher starts for what needs torch: one file per command, each a child process with a request."""
