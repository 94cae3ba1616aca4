#!/bin/sh
# cppcheck has nothing to say about what it calls errors, warnings, performance and portability.
set -eu
command -v cppcheck >/dev/null || { echo "cppcheck is not installed"; exit 77; }
cd "${TOP_SOURCE:-.}"
cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr \
	--suppress=missingIncludeSystem --error-exitcode=1 -D_GNU_SOURCE=1 -DHAVE_PAM=1 \
	-DPACKAGE_VERSION='"5"' -I. lib daemon
