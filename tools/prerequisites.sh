#!/bin/sh
# SPDX-License-Identifier: MIT
#
# prerequisites.sh [PYTHON] - check for the programs and headers that pip cannot install, before the build.
# It names everything that is missing, and the Debian packages that contain it.  The exit status is then 1.

python=${1:-python3}
packages=

missing() { # PACKAGE TEXT
	echo "missing: $2" >&2
	packages="$packages $1"
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
# Compile a program with the headers of the core, to find also a compiler without the headers of the C library.
printf '#include <pthread.h>\n#include <stdatomic.h>\n#include <stdio.h>\nint main(void) { return 0; }\n' >"$work/c.c"
compiler=
for candidate in ${CC:+"$CC"} cc gcc clang; do
	# shellcheck disable=SC2086  # CC may hold options
	if $candidate -std=gnu11 -o "$work/c" "$work/c.c" -pthread >"$work/log" 2>&1; then
		compiler=$candidate
		break
	fi
done
[ -n "$compiler" ] || missing build-essential "a C11 compiler with its C library (tried: ${CC:+$CC }cc gcc clang)"

if ! command -v "$python" >/dev/null 2>&1; then
	missing python3 "Python 3.11 or newer ('$python' is not a command); another one: make PYTHON=/path/to/python3 ..."
	missing python3-dev "Python's headers (Python.h)"
	missing python3-venv "Python's venv module with ensurepip"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
	missing python3 "Python 3.11 or newer ('$python' is ${version:-no working Python 3}); another one: make PYTHON=/path/to/python3 ..."
else
	# Debian's packages have the name python3-... for its default Python, and python3.X-... for another Python.
	prefix=python3
	"$python" -c 'import sys; sys.exit(sys.executable != "/usr/bin/python3")' ||
		[ ! -e /usr/bin/python3 ] ||
		prefix=$("$python" -c 'import os, sys
own = "python%d.%d" % sys.version_info[:2]
print("python3" if os.path.realpath("/usr/bin/python3").endswith(own) else own)')
	include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
	[ -f "$include/Python.h" ] || missing "$prefix-dev" "Python's headers ($include/Python.h)"
	"$python" -c 'import venv, ensurepip' 2>/dev/null ||
		missing "$prefix-venv" "Python's venv module with ensurepip ('$python' cannot make a virtual environment)"
fi

if [ -n "$packages" ]; then
	echo "On Debian and Ubuntu:  apt-get install$packages" >&2
	exit 1
fi
