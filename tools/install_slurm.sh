#!/bin/sh
# Install the Debian packages that tests/slurm needs to start a real Slurm of its own on this machine.
# Does nothing where they are already there, or where this is not Debian or not root. No system service is started.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
PROGRAMS="munged slurmctld slurmd sbatch scontrol slurmdbd sacctmgr mariadbd mariadb-install-db"
PACKAGES="slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
POLICY=/usr/sbin/policy-rc.d

missing=""
for program in $PROGRAMS; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install_slurm: Slurm is not installed, because that takes root; the tests in tests/slurm will be skipped."
    exit 0
fi
if [ ! -e /etc/debian_version ] || ! command -v apt-get >/dev/null; then
    echo "install_slurm: Slurm is not installed, because this is not Debian; the tests in tests/slurm will be skipped."
    exit 0
fi

# The packages' scripts ask policy-rc.d whether they may start their daemons: say no, and put back what was there.
saved=$(mktemp)
had_policy=false
restore_policy() {
    if $had_policy; then cp -p "$saved" "$POLICY"; else rm -f "$POLICY"; fi
    rm -f "$saved"
}
if [ -e "$POLICY" ]; then
    had_policy=true
    cp -p "$POLICY" "$saved"
fi
trap restore_policy EXIT
trap 'exit 1' INT TERM HUP
printf '#!/bin/sh\nexit 101\n' >"$POLICY"
chmod 755 "$POLICY"

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $PACKAGES
