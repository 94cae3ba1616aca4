#!/bin/sh
# Every shell script passes shellcheck.
set -eu
command -v shellcheck >/dev/null || { echo "shellcheck is not installed"; exit 77; }
cd "${TOP_SOURCE:-.}"
find . -path ./build -prune -o -path ./.git -prune -o -path ./build-aux -prune -o \
	-type f -size -200k -exec awk 'FNR == 1 && /^#!\/bin\/(ba)?sh/ { print FILENAME }' {} \; |
	grep -v -e '^\./configure' -e '^\./libtool' | xargs shellcheck
