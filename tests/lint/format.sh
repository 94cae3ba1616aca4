#!/bin/sh
# .clang-format decides the layout of every C file.
set -eu
command -v clang-format >/dev/null || { echo "clang-format is not installed"; exit 77; }
cd "${TOP_SOURCE:-.}"
find . -path ./build -prune -o -name '*.[ch]' -exec clang-format --dry-run --Werror {} +
