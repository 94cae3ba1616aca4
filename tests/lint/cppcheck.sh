#!/bin/sh
# cppcheck has nothing to say about what it calls errors, warnings, performance and portability. Its
# analysis across files (ctu) knows neither counts nor out parameters and is left out.
set -eu
command -v cppcheck >/dev/null || { echo "cppcheck is not installed"; exit 77; }
cd "${TOP_SOURCE:-.}"
cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr \
	--suppress=missingIncludeSystem --suppress=ctunullpointer --suppress=ctuuninitvar --suppress=ctuPointerArith --error-exitcode=1 -D_GNU_SOURCE=1 -DHAVE_PAM=1 \
	-DPACKAGE_VERSION='"5"' -I. lib daemon
