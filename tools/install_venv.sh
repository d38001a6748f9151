#!/bin/sh
# Make sure that a Python can create virtual environments: Debian keeps that part in a package of its own.
# Usage: install_venv.sh PYTHON
set -eu

"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "hpcgemma needs Python 3.11 or newer; $1 is $("$1" --version). Try: make PYTHON=python3.12 install" >&2
    exit 1
}
"$1" -c 'import ensurepip, venv' 2>/dev/null && exit 0
package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "$1 cannot create virtual environments. Ask an administrator for: apt-get install $package" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$package"
