#!/bin/sh
# make_venv.sh PYTHON VENV: a virtual environment with pip in it. Nothing is installed outside VENV.
#
# Debian's python3 comes without pip and without Python.h (packages python3-venv and python3-dev). Where they are missing,
# their files are fetched with apt-get and unpacked into VENV, which takes no rights.
set -eu
python=$1 venv=$2

fail() {
    printf 'fastrnn: %s\n' "$1" >&2
    exit 1
}

# unpack PACKAGE...: Debian packages, into $venv/debian
unpack() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    apt=$venv/debian/apt
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    options="-qq -o Dir::State=$PWD/$apt/state -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$PWD/$apt/cache
        -o Debug::NoLocking=1 -o APT::Sandbox::User=$(id -un)"
    # shellcheck disable=SC2086
    (cd "$apt" && apt-get $options update && apt-get $options download "$@") || return 1
    for package in "$apt"/*.deb; do dpkg -x "$package" "$venv/debian"; done
    rm -rf "$apt"
}

for tool in "$python" c++ cmake make; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (Debian: apt install python3 g++ cmake make)"
done
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or later is needed"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

echo "-- environment $venv"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
else
    "$python" -m venv --without-pip "$venv"
    unpack python3-pip-whl || fail "pip is missing: apt install python3-venv"
    wheel=$(ls "$venv"/debian/usr/share/python-wheels/pip-*.whl)
    "$venv/bin/python" "$wheel/pip" install --quiet --no-index "$wheel"
fi
if [ ! -f "$include/Python.h" ]; then
    unpack "libpython$version-dev" || fail "Python.h is missing: apt install python3-dev"
    headers=$venv/debian/usr/include
    mkdir -p "$venv/include/python"
    cp "$headers/python$version"/*.h "$venv/include/python"
    cp -R "$headers/python$version"/cpython "$headers/python$version"/internal "$venv/include/python"
    cp "$headers"/*-linux-gnu/"python$version/pyconfig.h" "$venv/include/python"
    # every compiler that this environment's Python starts looks there
    echo 'import os, sys; os.environ.setdefault("CPATH", os.path.join(sys.prefix, "include", "python"))' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/python_headers.pth"
fi
rm -rf "$venv/debian"
