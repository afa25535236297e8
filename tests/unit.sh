#!/bin/bash
# tests/unit.sh: compiles tests/unit/*.c with sanitizers and runs them; the last line is
# "N passed, N failed".
#
#   tests/unit.sh            all of them
#   tests/unit.sh WORD...    only files of these names (job), only tests whose name holds another
#
# TWSYNC_UNIT_DIR   keeps the programs, for a debugger
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:${ASAN_OPTIONS:-}
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:${UBSAN_OPTIONS:-}
export TZ=UTC

dir=${TWSYNC_UNIT_DIR:-$(mktemp -d)}
[ -n "${TWSYNC_UNIT_DIR:-}" ] || trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"

files=() words=()
for word in "$@"; do
    if [ -f "tests/unit/$word.c" ]; then files+=("$word"); else words+=("$word"); fi
done
if ((${#files[@]} == 0)); then
    for file in tests/unit/*.c; do files+=("$(basename "$file" .c)"); done
fi

# One file: compiled, run, its output kept.
run_file() {
    ./build.sh cc debug "tests/unit/$1.c" "$dir/$1" -Wno-unused-function >"$dir/$1.out" 2>&1 &&
        "$dir/$1" "${@:2}" >>"$dir/$1.out" 2>&1 </dev/null
}

jobs=$(nproc)
for file in "${files[@]}"; do
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
    { run_file "$file" "${words[@]}"; echo $? >"$dir/$file.rc"; } &
done
wait

passed=0 failed=0
for file in "${files[@]}"; do
    echo "-- $file"
    cat "$dir/$file.out"
    rc=$(cat "$dir/$file.rc")
    if [[ $(tail -n 1 "$dir/$file.out") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        if ((rc != 0 && BASH_REMATCH[2] == 0)); then failed=$((failed + 1)); fi
    else
        failed=$((failed + 1)) # it did not compile, or did not reach its end
    fi
done
echo "$passed passed, $failed failed"
((failed == 0 && passed > 0))
