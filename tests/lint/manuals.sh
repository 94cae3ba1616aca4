#!/bin/sh
# The manual pages pass mandoc's lint without a word.
set -eu
command -v mandoc >/dev/null || { echo "mandoc is not installed"; exit 77; }
cd "${TOP_SOURCE:-.}/man"
complaints=$(mandoc -T lint ./*.[0-9] 2>&1) || true
[ -z "$complaints" ] || { echo "$complaints"; exit 1; }
