#!/bin/bash
# tests/run.sh: everything that checks twsync; the last line is "N passed, N failed[, N skipped]".
#
#   tests/run.sh             lint, unit tests, integration tests on real servers
#   tests/run.sh NAME...     only these: lint, unit, a test file (test_06_changes, 06), one test
#                        (test_06_changes.py::test_bits), or words of names: "copy and not large"
#
# TWSYNC_TEST_BIN      the binary (default ./twsync); a debug build serves too
# TWSYNC_TEST_PGBIN    folder of initdb, postgres, pg_dump (default the newest installed)
# TWSYNC_TEST_VERSION  major version of the servers (13, 15, 17, 18; default the installed one);
#                      ./build.sh test fetches those that are not installed into TWSYNC_CACHE
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
        { [ -n "${TWSYNC_TEST_PGBIN:-}" ] ||
            compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
}

# pytest with the arguments given; it leaves its counts in the file named first.
pytest_into() {
    local counts=$1
    shift
    TWSYNC_TEST_COUNTS=$counts PYTHONDONTWRITEBYTECODE=1 \
        "$PYTHON" -m pytest -q -rs -p no:cacheprovider --durations=3 --rootdir tests/it "$@"
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
    counts=$(mktemp)
    pytest_into "$counts" "$@"
    count_pytest $? "$counts"
    rm -f "$counts"
}

# One file of integration tests, its output shown when it is done.
one_file() {
    local base=$1/${2##*/}
    pytest_into "$base.counts" "$2" >"$base.out" 2>&1
    echo $? >"$base.rc"
    echo "-- ${2##*/}"
    cat "$base.out"
}

# All integration tests, two files at a time, the longest first; each file has servers of its own.
run_all_pytest() {
    local folder file rc order=()
    folder=$(mktemp -d)
    for file in tests/it/test_{22_,10_,18_,09_,05_,42_,45_,44_,41_,43_,23_,100_}*.py \
        tests/it/test_{06_,16_,08_,101_,17_,03_,40_}*.py tests/it/test_*.py; do
        if [[ -f $file && " ${order[*]} " != *" $file "* ]]; then order+=("$file"); fi
    done
    export -f one_file pytest_into
    export PYTHON
    printf '%s\0' "${order[@]}" | xargs -0 -n 1 -P 2 bash -c 'one_file "$0" "$1"' "$folder"
    for file in "${order[@]}"; do
        file=$folder/${file##*/}
        rc=$(cat "$file.rc" 2>/dev/null || echo 1)
        touch "$file.counts"
        count_pytest "$rc" "$file.counts"
    done
    rm -rf "$folder"
}

integration() {
    echo "== integration tests"
    if ! have_tools; then
        echo "run.sh: pytest, psycopg2, PostgreSQL or openssl is missing: run ./build.sh test"
        count 0 1
        return
    fi
    "$@"
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
    integration run_pytest -k "${expression# or }" "${files[@]:-tests/it}"
elif ((all)); then
    integration run_all_pytest
elif ((${#files[@]})); then
    integration run_pytest "${files[@]}"
fi

if ((skipped)); then tail=", $skipped skipped"; else tail=""; fi
echo "$passed passed, $failed failed$tail"
((failed == 0 && passed > 0))
