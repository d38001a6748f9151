"""The commands, one small file each. Nothing heavy is imported before a command's body runs."""
