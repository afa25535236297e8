#!/bin/bash
# tests/run.sh: everything that checks twsync; the last line is "N passed, N failed[, N skipped]".
#
#   tests/run.sh             lint, unit tests, integration tests on real servers
#   tests/run.sh NAME...     only these: lint, unit, a test file (test_06_changes, 06), one test
#                            (test_06_changes.py::test_bits) or words of names (toast, "copy and not large")
#
# TWSYNC_TEST_BIN      the binary (default ./twsync); a debug build serves too
# TWSYNC_TEST_PGBIN    folder of initdb, postgres, pg_dump (default the newest installed)
# TWSYNC_TEST_SEED     repeats the random choices of a failed run
# TWSYNC_TEST_SECONDS  length of the acceptance test's writing (default 60)
# TWSYNC_TEST_KEEP     keep the servers' folders and logs
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=/usr/bin/python3
passed=0 failed=0 skipped=0

count() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0})); }

# One command that prints "N passed, N failed" last, or else counts as one test by its exit code.
run_counted() {
    local title=$1 out rc line
    shift
    echo "== $title"
    out=$(mktemp)
    "$@" 2>&1 | tee "$out"
    rc=${PIPESTATUS[0]}
    line=$(grep -Ex '[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?' "$out" | tail -n 1)
    rm -f "$out"
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
        count "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${BASH_REMATCH[4]:-0}"
        if ((rc != 0 && BASH_REMATCH[2] == 0)); then count 0 1; fi
    elif ((rc == 0)); then
        count 1 0
    else
        count 0 1
    fi
}

# What the integration tests need beyond the binary; ./build.sh test installs it.
have_tools() {
    "$PYTHON" -c 'import pytest, psycopg2' && command -v openssl readelf setpriv >/dev/null &&
        { [ -n "${TWSYNC_TEST_PGBIN:-}" ] || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
}

# pytest with the arguments given; it leaves its counts in the file named first.
pytest_into() {
    local counts=$1
    shift
    TWSYNC_TEST_COUNTS=$counts PYTHONDONTWRITEBYTECODE=1 \
        "$PYTHON" -m pytest -q -p no:cacheprovider --durations=5 --rootdir tests/it "$@"
}

# Adds what a pytest left; its exit code tells of what has no count.
count_pytest() {
    local rc=$1 numbers
    read -r -a numbers <"$2" || numbers=()
    if ((${#numbers[@]} == 3)); then count "${numbers[@]}"; fi
    if ((rc != 0 && (${#numbers[@]} != 3 || numbers[1] == 0))); then count 0 1; fi
}

run_pytest() {
    local counts
    echo "== integration tests"
    if ! have_tools; then
        echo "run.sh: pytest, psycopg2, a PostgreSQL server or openssl is missing: run ./build.sh test"
        count 0 1
        return
    fi
    counts=$(mktemp)
    pytest_into "$counts" "$@"
    count_pytest $? "$counts"
    rm -f "$counts"
}

# All integration tests in two lanes, one for each core; each lane has servers of its own.
run_all_pytest() {
    local folder lane_1=() lane_2=() file rc
    for file in tests/it/test_*.py; do
        case $file in
            */test_0[149]_* | */test_10_*) lane_1+=("$file") ;;
            *) lane_2+=("$file") ;;
        esac
    done
    if ! have_tools; then run_pytest; return; fi
    folder=$(mktemp -d)
    pytest_into "$folder/counts" "${lane_2[@]}" >"$folder/out" 2>&1 &
    trap 'kill -INT $!; wait; exit 130' INT TERM
    run_pytest "${lane_1[@]}"
    wait $!
    rc=$?
    cat "$folder/out"
    count_pytest $rc "$folder/counts"
    rm -rf "$folder"
}

files=() words=() all=0
if (($# == 0)); then set -- lint unit it; fi
for name in "$@"; do
    case $name in
        lint) if [ -x tests/lint.sh ]; then run_counted lint tests/lint.sh; fi ;;
        unit) if [ -x tests/unit.sh ]; then run_counted "unit tests" tests/unit.sh; fi ;;
        it) all=1 ;;
        *::*) files+=("tests/it/${name##*/}") ;;
        *)
            found=(tests/it/test_"$name"*.py tests/it/"$name"*.py tests/it/"$name")
            mapfile -t found < <(ls -d "${found[@]}" 2>/dev/null | sort -u)
            if ((${#found[@]})); then files+=("${found[@]}"); else words+=("$name"); fi ;;
    esac
done
if ((${#words[@]})); then
    expression=$(printf ' or (%s)' "${words[@]}")
    run_pytest -k "${expression# or }" "${files[@]:-tests/it}"
elif ((all)); then
    run_all_pytest
elif ((${#files[@]})); then
    run_pytest "${files[@]}"
fi

if ((skipped)); then tail=", $skipped skipped"; else tail=""; fi
echo "$passed passed, $failed failed$tail"
((failed == 0 && passed > 0))
