#!/bin/sh
# Runs the tests, and lists at the end which of them were skipped and why.
#
# usage: test.sh [ARGUMENTS...]     those of `cargo test --workspace`
#
# With CI=true a test whose prerequisite is missing fails instead.
set -eu
cd "$(dirname "$0")/.."
list=$(realpath -m "${CARGO_TARGET_DIR:-target}")/skipped
mkdir -p "$(dirname "$list")"
: >"$list"

status=0
WEFT_SKIPPED=$list hack/cargo.sh test --workspace "$@" || status=$?

sort -u -o "$list" "$list"
if [ -s "$list" ]; then
	echo "skipped: $(wc -l <"$list")"
	sed 's/^/  /' "$list"
else
	echo "skipped: nothing"
fi
exit "$status"
