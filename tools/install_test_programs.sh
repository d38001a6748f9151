#!/bin/sh
# Install the Debian packages of programs that tests start themselves.
#
#     sh tools/install_test_programs.sh slurm browser
#
# slurm: a real Slurm, for tests/slurm and tests/faults; browser: Chromium, for the report's page.
# Does nothing where they are already there, or where this is not Debian or not root. No system service is started.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
POLICY=/usr/sbin/policy-rc.d

programs=""
packages=""
for wanted in "$@"; do
    case $wanted in
    slurm)
        programs="$programs munged slurmctld slurmd sbatch scontrol slurmdbd sacctmgr mariadbd mariadb-install-db"
        packages="$packages slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
        ;;
    browser)
        programs="$programs chromium"
        packages="$packages chromium fonts-dejavu-core"
        ;;
    *)
        echo "install_test_programs: there is no $wanted; valid: slurm, browser" >&2
        exit 2
        ;;
    esac
done

missing=""
for program in $programs; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install_test_programs: without root nothing is installed; tests that need$missing will be skipped."
    exit 0
fi
if [ ! -e /etc/debian_version ] || ! command -v apt-get >/dev/null; then
    echo "install_test_programs: this is not Debian, nothing is installed; tests that need$missing will be skipped."
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
apt-get install -y -qq --no-install-recommends $packages
