#!/bin/bash
# lint.sh: the rules of the house that a program can check.  Says file:line of each breach; exit 1
# if there is any.  Run by ./build.sh lint, and by the tests.
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.."

# Every mutable object of file scope, and why it may be.  All other state belongs to a struct.
readonly MUTABLE=(
    stop_flag   # written by signal handlers
    reload_flag
    log_sink    # where log lines go
    os          # the operating system's calls, which a test may replace
    test_hook   # the test point that is armed; in test builds only
)

readonly MAX_COLUMNS=100
readonly MAX_LINES=60
readonly BANNED="strcpy|strcat|v?sprintf|strtok|gets|alloca|system|popen|f?exec[lv]p?e?"

found=$(mktemp)
figures=$(mktemp)
object=$(mktemp --suffix=.o)
trap 'rm -f "$found" "$figures" "$object"' EXIT

# C with comments and strings emptied, line for line: what is left is code.
code_only() {
    perl -0777 -pe 's{("(?:\\.|[^"\\])*"|\x27(?:\\.|[^\x27\\])*\x27)|(/\*.*?\*/|//[^\n]*)}
                     {defined $1 ? substr($1, 0, 1) x 2 : $2 =~ tr/\n//cdr}gsex' "$1"
}

# Prototypes of static functions, functions too long without a LONG: comment, banned calls.
check_code() {
    code_only "$1" | perl -e '
        my ($file, $max, $banned) = @ARGV;
        open my $in, "<", $file or die "$file: $!";
        my @raw = ("", <$in>);
        my @code = ("", <STDIN>);
        my ($head, $start, $inside, @lengths) = ("", 0, 0);

        # Inside a function, or in the comment right above it.
        sub has_reason {
            my ($first, $last) = @_;
            $first-- while $raw[$first - 1] =~ m{^\s*(/?\*)|\*/\s*$};
            return grep { /LONG:/ } @raw[$first .. $last];
        }

        sub function_ends {
            my $length = $_[0] - $start + 1;
            push @lengths, $length;
            print "$file:$start: function of $length lines, more than $max, without LONG:\n"
                if $length > $max && !has_reason($start, $_[0]);
        }

        # At file scope a line starts a declaration in column 1; it ends with ; or {.
        for my $i (1 .. $#code) {
            my $line = $code[$i];
            print "$file:$i: banned function: $1\n" if $line =~ /\b($banned)\s*\(/;
            if ($inside) {
                next if $line !~ /^\}/;
                function_ends($i) if $inside == 2;
                $inside = 0;
                next;
            }
            next if $line =~ /^#/ || $code[$i - 1] =~ /\\$/;
            ($head, $start) = ("", $i) if $line =~ /^[A-Za-z_]/;
            $head .= $line;
            if ($line =~ /\{\s*$/) {
                $inside = $head =~ /^[^={]*\([^={]*\)\s*\{\s*$/s ? 2 : 1;
            } elsif ($line =~ /;\s*$/) {
                print "$file:$start: prototype of a static function\n"
                    if $head =~ /^static\b[^={]*\b\w+\s*\([^(=]*\)\s*;\s*$/s && $head !~ /\(\s*\*/;
                $head = "";
            }
        }
        @lengths = sort { $a <=> $b } @lengths;
        printf STDERR "%s: %d functions, median %d lines, nine of ten within %d, longest %d\n",
            $file, scalar @lengths, @lengths[$#lengths / 2, $#lengths * 0.9, $#lengths] if @lengths;
    ' "$1" "$MAX_LINES" "$BANNED"
}

# The contents in the opening comment name the chapters, in order, as their banners do.
check_contents() {
    perl -e '
        my ($file, $opening, %listed, %banner, @listed) = ($ARGV[0], 1);
        open my $in, "<", $file or die "$file: $!";
        while (<$in>) {
            if ($opening && m{^ \*\s+(\d+)\s\s+(\S.*?)\s\s+\S}) {
                push @listed, $1;
                $listed{$1} = "$2";
            }
            $opening = 0 if m{\*/};
            next if !m{^/\* ==== (\d+)\. (.*?) =+};
            print "$file:$.: chapter $1 has no line in the contents\n" if !exists $listed{$1};
            print "$file:$.: chapter $1 is \"$2\", in the contents \"$listed{$1}\"\n"
                if exists $listed{$1} && $listed{$1} ne $2;
            print "$file:$.: chapter $1 stands below a later one\n"
                if grep { $_ > $1 } keys %banner;
            $banner{$1} = $2;
        }
        for (@listed) {
            print "$file:1: no banner for chapter $_ of the contents\n"
                if !$banner{$_} && $listed{$_} ne "-"; # the opening itself is a chapter
        }
    ' "$1"
}

# Long lines (of C and shell), blanks at the end, notes of work to do that no issue knows of.
check_lines() {
    perl -CSD -e '
        my $max = shift;
        while (<>) {
            chomp;
            print "$ARGV:$.: ${\ length} columns, more than $max\n"
                if length > $max && $ARGV =~ /(\.c|\.h|\.sh)$/;
            print "$ARGV:$.: tab\n" if /\t/;
            print "$ARGV:$.: blank at the end\n" if /\s$/;
            print "$ARGV:$.: work to do without the number of an issue\n"
                if /\b(TO[D]O|FI[X]ME|XX[X])\b/ && !/\b(TO[D]O|FI[X]ME|XX[X])\b\W*(issue )?#\d+/;
        } continue { close ARGV if eof }
    ' "$MAX_COLUMNS" "$@"
}

# What the compiler put into writable sections.  .data.rel.ro is constant once relocated.
check_mutable() {
    local name
    ./build.sh cc release "$1" "$object" -c >/dev/null || { echo "$1:1: does not compile"; return; }
    objdump -t "$object" | awk '/ O \.(data|bss|tdata|tbss)/ && !/ O \.data\.rel\.ro/' |
        sed -E 's/.* //; s/\.[0-9]+$//' | sort -u |
        while read -r name; do
            [[ " ${MUTABLE[*]} " = *" $name "* ]] ||
                echo "$1:$(line_of "$1" "$name"): mutable state outside a struct: $name"
        done
}

line_of() {
    local line
    line=$(grep -nE "^ *(static|_Thread_local) .*\b$2\b[^()]*[]);=]" "$1" | head -n 1) || true
    line=${line%%:*}
    echo "${line:-1}"
}

check_cppcheck() {
    command -v cppcheck >/dev/null || return 0
    cppcheck --quiet --std=c11 --enable=warning,portability --inline-suppr --max-configs=1 \
        --suppress=missingInclude --suppress=missingIncludeSystem -D_GNU_SOURCE \
        '-D_Noreturn=__attribute__((noreturn))' `# which cppcheck knows better` \
        --template='{file}:{line}: {id}: {message}' "$1" 2>&1 || true
}

check_shell() {
    command -v shellcheck >/dev/null || return 0
    shellcheck -S warning -f gcc "$@" || true
}

main() {
    local count sources=(twsync.c twsync.h) scripts=(build.sh tests/*.sh) others
    mapfile -t others < <(find . -name '*.py' -o -path './tests/*.[ch]' -o -path './jobs/*.ini')
    {
        check_code twsync.c 2>"$figures"
        check_contents twsync.c
        check_lines "${sources[@]}" "${scripts[@]}" "${others[@]}"
        check_mutable twsync.c
        check_cppcheck twsync.c
        check_shell "${scripts[@]}"
    } >"$found"
    cat "$found" "$figures"
    count=$(wc -l <"$found")
    echo "lint: $count findings"
    [[ $count = 0 ]]
}

main
