#!/bin/bash
# build.sh: the one entry point of twsync.  ./build.sh help lists what it does.
#
# The libraries are built from Debian's source packages, with Debian's security patches, into a
# cache outside the checkout, once for each flavour:
#   musl    for the release: one static program that needs nothing of the machine it runs on
#   glibc   for debug, unit tests and fuzzers, because the sanitizers need glibc
# A library is built again when its source, its recipe, its flags or the compiler change.
#
# Settings, by environment:
#   TWSYNC_CACHE=DIR     where libraries and sources are kept (default: ~/.cache/twsync)
#   TWSYNC_SOURCES=DIR   build from this folder, filled by ./build.sh fetch, with no network
set -euo pipefail
export LC_ALL=C.UTF-8
unset CC CFLAGS CPPFLAGS LDFLAGS MAKEFLAGS # of the caller's shell: they would leak into recipes

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
FROM=$PWD
CACHE=${TWSYNC_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/twsync}
[[ $CACHE = /* ]] || CACHE=$FROM/$CACHE
SRC=${TWSYNC_SOURCES:-$CACHE/src}
[[ $SRC = /* ]] || SRC=$FROM/$SRC
readonly HERE FROM CACHE SRC

# The libraries in build order, with their Debian source packages, the archives each leaves, and
# the order to link them in.  A new library is a word in each of the four and a recipe build_NAME.
readonly LIBS=(zlib inih openssl libpq microhttpd)
declare -rA PACKAGE=([zlib]=zlib [inih]=libinih [openssl]=openssl [libpq]=postgresql-17
    [microhttpd]=libmicrohttpd)
# libpq.a leaves common code undefined; only the _shlib variants were built for use in a library.
declare -rA ARCHIVES=([zlib]="libz.a" [inih]="libinih.a" [openssl]="libssl.a libcrypto.a"
    [libpq]="libpq.a libpgcommon_shlib.a libpgport_shlib.a" [microhttpd]="libmicrohttpd.a")
readonly LINK_ORDER=(libpq microhttpd openssl inih zlib)

# The Debian release whose sources are used.  Debian 12 itself has libpq 15, which knows neither
# require_auth nor sslrootcert=system.  One suite for all, so that one team's fixes reach all.
readonly SUITE=trixie

readonly BUILD_PACKAGES=(gcc libc6-dev binutils make musl-tools bison flex perl dpkg-dev bzip2
    xz-utils)
# On Alpine, whose libc is musl, its own static libraries serve and only the release is built.
# Untested.  Its inih takes lines of at most 200 bytes.
readonly ALPINE_PACKAGES=(bash build-base libpq-dev openssl-dev openssl-libs-static zlib-dev
    zlib-static inih-dev libmicrohttpd-dev libmicrohttpd-static)
readonly TEST_PACKAGES=(python3 python3-pytest python3-psycopg2 openssl procps cppcheck
    shellcheck libfaketime
    chromium chromium-driver python3-selenium  # the status page
    podman crun python3-seccomp python3-yaml systemd)  # jobs/: container, unit, manifest

# The servers of other major versions that tests run on, and the Debian releases that have them.
declare -rA SERVERS=([13]=bullseye [15]=bookworm [17]=trixie [18]=forky)
readonly SERVER_PACKAGES=(mmdebstrap debian-archive-keyring)

readonly MAX_BYTES=$((8 * 1024 * 1024))

# ---- saying things ----------------------------------------------------------------------------

die() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

# Runs a step with its output in a log, one line on the terminal.  Never call it in a condition:
# that would switch off errexit inside the step.
step() {
    local name=$1 began=$SECONDS log rc
    shift
    mkdir -p "$CACHE/log"
    log=$CACHE/log/${name//[ \/]/-}.log
    printf '  %-50s' "$name"
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    rc=$?
    set -e
    if ((rc == 0)); then
        printf '%5d s\n' $((SECONDS - began))
        return
    fi
    printf ' failed\n'
    tail -n 25 "$log" >&2
    die "could not finish \"$name\": the whole log is $log"
}

# ---- packages ---------------------------------------------------------------------------------

on_alpine() { [[ -e /etc/alpine-release ]]; }

is_root() { [[ $(id -u) = 0 ]]; }

is_installed() {
    if on_alpine; then apk info -e "$1" >/dev/null; return; fi
    [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) = *" ok installed" ]]
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=300 update
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

# Sees to it that the packages are there, or says in one line how to get them.
need() {
    local missing=() package command="apt-get update && apt-get install -y"
    on_alpine && command="apk add"
    on_alpine || command -v dpkg-query >/dev/null ||
        die "builds on Debian 12 or newer, or on Alpine; elsewhere run it in a container of these"
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if ! is_root || [[ -n ${TWSYNC_SOURCES:-} ]]; then
        die "packages are missing; as root, run: $command ${missing[*]}"
    elif on_alpine; then
        step "installing ${#missing[@]} packages" apk add "${missing[@]}"
    else
        step "installing ${#missing[@]} packages" apt_install "${missing[@]}"
    fi
}

has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

# Debian's package would make and start a cluster of its own, which nobody here asked for: a
# setting that forbids it exists while we install, and no longer.
postgres_install() {
    local dir=/etc/postgresql-common/createcluster.d
    local conf=$dir/twsync-build.conf
    apt_install postgresql-common
    mkdir -p "$dir"
    # shellcheck disable=SC2064
    trap "rm -f '$conf'" EXIT # now: by then the variable is gone
    echo "create_main_cluster = false" >"$conf"
    apt_install postgresql postgresql-contrib
}

need_postgres() {
    has_postgres && return
    is_root ||
        die "PostgreSQL is missing; as root, run: apt-get update && apt-get install -y postgresql"
    step "installing PostgreSQL" postgres_install
}

# ---- servers of other versions ----------------------------------------------------------------
# Each is a Debian of its own, unpacked in CACHE/pg/VERSION, where tests run it by chroot.  They
# are for tests alone: one that cannot be had is told, and its tests are skipped.

# Laid out beside its place and moved there whole.  Of what nobody runs there, the large is left
# out: manuals, Perl, and the compiler of queries, which since 18 is a package of its own.  What
# mmdebstrap mounts, where it may, is seen by it alone, and goes with it however it ends.
server_make() {
    local version=$1 uri=$2 suite=${SERVERS[$1]} dir=$CACHE/pg/$1 alone=(unshare --mount)
    "${alone[@]}" true || alone=()
    rm -rf "$dir.part"
    "${alone[@]}" mmdebstrap --mode=root --variant=extract \
        --include="postgresql-$version,bash,coreutils,tzdata" \
        --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
        --aptopt='Acquire::http::Timeout "20"' "$suite" "$dir.part" "deb $uri $suite main"
    cd "$dir.part"
    rm -rf usr/share/{doc,man,locale,i18n,perl,perl5} usr/lib/*/{perl,perl-base,perl5} \
        usr/lib/*/lib{LLVM,perl,z3}* usr/lib/postgresql/*/lib/{bitcode,llvmjit*}
    [[ -e bin/sh ]] || ln -s bash bin/sh
    echo "127.0.0.1 localhost" >etc/hosts
    mkdir -p dev/shm
    chmod 1777 dev/shm
    server_key >made
    rm -rf "$dir"
    mv "$dir.part" "$dir"
}

server_key() { declare -f server_make | sha256sum; }

# There, made in this way, and within the last month: then newer minor versions are looked for.
server_is_good() {
    [[ $(cat "$1/made" 2>/dev/null) = "$(server_key)" && -n $(find "$1/made" -mtime -30) ]]
}

# The versions that are neither installed nor good in the cache.
servers_lacking() {
    local version
    for version in $(printf '%s\n' "${!SERVERS[@]}" | sort -n); do
        [[ -x /usr/lib/postgresql/$version/bin/postgres ]] || server_is_good "$CACHE/pg/$version" ||
            echo "$version"
    done
}

# Runs beside the build, which needs other locks, and therefore with its own; its output is what
# there is to tell.  Without a network the servers at hand serve, and the next try is tomorrow's.
servers_fetch() {
    local uri=$1 version dir log
    exec {LOCK}>"$CACHE/pg/lock"
    flock "$LOCK"
    for version in $(servers_lacking); do
        dir=$CACHE/pg/$version log=$CACHE/log/server-$version.log
        set +e
        (
            set -e
            server_make "$version" "$uri"
        ) >"$log" 2>&1 </dev/null
        set -e
        if server_is_good "$dir"; then
            echo "  PostgreSQL $version to test with: ready"
        elif [[ -d $dir ]]; then
            touch -d "29 days ago" "$dir/made"
            echo "  could not look for a newer PostgreSQL $version: using the one at hand"
        else
            echo "  no PostgreSQL $version, whose tests are skipped: the reason is in $log"
        fi
    done
}

# Only root may chroot.  With TWSYNC_SOURCES there is no network.
servers_begin() {
    local uri
    SERVERS_PID='' SERVERS_NEWS=$CACHE/log/servers
    mkdir -p "$CACHE/pg" "$CACHE/log"
    is_root && [[ -z ${TWSYNC_SOURCES:-} && -n $(servers_lacking) ]] || return 0
    set +e # the subshell lets a failure end here
    (need "${SERVER_PACKAGES[@]}")
    uri=$(main_mirror) # asked for before it runs beside the build: both may need apt's lock
    set -e
    servers_fetch "$uri" >"$SERVERS_NEWS" 2>&1 </dev/null &
    SERVERS_PID=$!
}

servers_wait() {
    [[ -n $SERVERS_PID ]] || return 0
    wait "$SERVERS_PID" || true
    cat "$SERVERS_NEWS"
}

# promtool, for the metrics: its package is unpacked only, since installed it would start a server.
promtool_unpack() {
    local dir=$CACHE/tools
    rm -rf "$dir.part"
    mkdir -p "$dir.part/get"
    cd "$dir.part/get"
    apt-get -q -o APT::Sandbox::User=root download prometheus
    dpkg-deb -x prometheus_*.deb "$dir.part"
    rm -rf "$dir" get
    mv "$dir.part" "$dir"
}

need_promtool() {
    command -v promtool >/dev/null || [[ -x $CACHE/tools/usr/bin/promtool ]] ||
        step "promtool" promtool_unpack
}

# For the benchmark, which goes on without it.  The subshell lets a failure end here, not the build.
want_pglogical() {
    local bin=(/usr/lib/postgresql/*/bin) newest
    newest=$(printf '%s\n' "${bin[@]}" | sort -V | tail -n 1)
    newest=${newest#/usr/lib/postgresql/}
    set +e
    (need "postgresql-${newest%/bin}-pglogical")
    (need pgcopydb) # the benchmark of copies goes on without it, too
    set -e
}

# ---- sources ----------------------------------------------------------------------------------
# An apt of our own: its lists and sources live in the cache, so that the machine's are not
# touched, and it checks every file against the archive's signed index as apt always does.

apt_options() {
    printf '%s\n' -o "Dir::Etc::sourcelist=$CACHE/apt/sources.list" \
        -o "Dir::Etc::sourceparts=/dev/null" -o "Dir::State::lists=$CACHE/apt/lists" \
        -o "Dir::Cache=$CACHE/apt/cache" -o "Acquire::Retries=3" \
        -o "APT::Sandbox::User=$(id -un)" # apt's own user may not enter a cache in a home folder
}

apt_private() {
    local command=$1 options
    shift
    mapfile -t options < <(apt_options)
    "$command" -q "${options[@]}" "$@"
}

# The machine's own mirror, as its apt is set up: main archive or security archive.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" | head -n 1
}

main_mirror() {
    local uri
    uri=$(mirror Debian)
    if [[ -z $uri ]] && is_root; then
        apt-get -q update >&2
        uri=$(mirror Debian)
    fi
    echo "$uri"
}

apt_setup() {
    local main security key=/usr/share/keyrings/debian-archive-keyring.gpg
    main=$(main_mirror)
    if [[ -z $main ]]; then
        echo "apt knows no Debian mirror; as root, run: apt-get update"
        return 1
    fi
    security=$(mirror Debian-Security)
    mkdir -p "$CACHE"/apt/lists/partial "$CACHE"/apt/cache/archives/partial
    echo "deb-src [signed-by=$key] $main $SUITE main" >"$CACHE/apt/sources.list"
    [[ -z $security ]] ||
        echo "deb-src [signed-by=$key] $security $SUITE-security main" >>"$CACHE/apt/sources.list"
    apt_private apt-get update --error-on=any
}

src_versions() {
    apt_private apt-cache showsrc --only-source "$1" | sed -n 's/^Version: //p' | sort -ruV
}

# A mirror may list a version and not have its files.  Then the next older one is taken, and told:
# it may lack a security fix.  Any other failure is a failure.
src_get() {
    local package=$1 version log
    for version in $(src_versions "$package"); do
        if log=$(apt_private apt-get source --download-only "$package=$version" 2>&1); then
            echo "$log"
            src_prune "$package" "$SRC/${package}_${version#*:}.dsc"
            return
        fi
        echo "$log"
        [[ $log = *" 404 "* ]] || return 1
        echo "$package $version is listed but not served by the mirror" >>"$SRC/missed"
    done
    src_get_tested "$package"
}

# What twsync was last tested with, where a mirror serves none of what it lists: .dsc by its sum,
# and the rest by the sums in it.
declare -A TESTED=(
    [postgresql-17]="postgresql-17_17.11-0+deb13u1.dsc
        bf148ae423a982707c3f60672c3a072ef62b701bd9f5df847d9f4b8c9b3e3b18"
    [openssl]="openssl_3.5.7-1~deb13u2.dsc
        25904642004d30c5c3da4642a72a7d09f8d9eb6e5ce62dab53c0371114faf8f2"
    [libmicrohttpd]="libmicrohttpd_1.0.1-4.dsc
        4c5ee2a49beb5b9b667fa6816acdc99f3fb0686b6abdfbe1303e304128cff055"
    [zlib]="zlib_1.3.dfsg+really1.3.1-1.dsc
        ede2791e29c1d3b422f9208bdd7edf040c20445ea1e7453a72037576e64fa197"
    [libinih]="libinih_59-1.dsc
        ec3334b0ad6a817e84b0bfa7599097536f8433c7fc36f82561dc9c4930fe9779"
)

src_get_tested() {
    local package=$1 dsc sum file folder=${1:0:1}
    [[ -n ${TESTED[$package]:-} ]] || return 1
    read -r -d '' dsc sum <<<"${TESTED[$package]}" || true
    [[ $package != lib* ]] || folder=${package:0:4}
    folder=$(main_mirror)pool/main/$folder/$package
    src_get_file "$folder/$dsc" "$dsc" "$sum" || return 1
    while read -r sum _ file; do
        src_get_file "$folder/$file" "$file" "$sum" || return 1
    done < <(sed -n '/^Checksums-Sha256:/,/^[^ C]/s/^ //p' "$dsc")
    src_prune "$package" "$SRC/$dsc"
}

src_get_file() { /usr/lib/apt/apt-helper download-file "$1" "$2" "SHA256:$3"; }

# Leaves of a package only the files that its .dsc names.
src_prune() {
    local file
    for file in "$SRC/$1"_*; do
        [[ $file = "$2" ]] || grep -qF " ${file##*/}" "$2" || rm -f "$file"
    done
}

# Also called in a condition, where errexit is off: hence the returns.
src_download() {
    local lib
    mkdir -p "$SRC" && cd "$SRC" || return 1
    rm -f missed offline
    apt_setup || return 1
    for lib in "${LIBS[@]}"; do
        src_get "${PACKAGE[$lib]}" || return 1
    done
    touch complete
}

# Without a network the sources at hand serve, and the next try is tomorrow's.
src_refresh() { src_download || touch "$SRC/offline" "$SRC/complete"; }

# A cache filled before a library was added to the list lacks its source.
src_has_all() {
    local lib
    for lib in "${LIBS[@]}"; do
        compgen -G "$SRC/${PACKAGE[$lib]}_*.dsc" >/dev/null || return 1
    done
}

# Newer sources are looked for once a day, so that security fixes come in by themselves.
src_fetch() {
    if [[ -n ${TWSYNC_SOURCES:-} ]]; then
        src_check
        return
    fi
    src_has_all || rm -f "$SRC/complete"
    [[ -z $(find "$SRC/complete" -mmin -1440 2>/dev/null) ]] || return 0
    if [[ ! -e $SRC/complete ]]; then
        step "sources" src_download
    else
        step "newer sources" src_refresh
        [[ ! -e $SRC/offline ]] || echo "  could not look for newer sources: using those at hand"
    fi
    [[ ! -e $SRC/missed ]] || sed 's/^/  /; s/$/: using an older one/' "$SRC/missed"
}

# A folder given by TWSYNC_SOURCES has each source once.
src_check() {
    local lib name count
    for lib in "${LIBS[@]}"; do
        name="${PACKAGE[$lib]}_*.dsc"
        count=$( (compgen -G "$SRC/$name" || true) | wc -l)
        [[ $count != 0 ]] || die "$SRC has no $name; with a network, run: ./build.sh fetch $SRC"
        [[ $count = 1 ]] || die "$SRC has $count files $name: leave one"
    done
}

dsc() { echo "$SRC/${PACKAGE[$1]}"_*.dsc; }

# Debian's version without the epoch: it tells the security patches apart.
src_version() { sed -n '0,/^Version: /s/^Version: \([0-9]*:\)\{0,1\}//p' "$(dsc "$1")"; }

# ---- libraries --------------------------------------------------------------------------------

flavour_cc() {
    case $1 in
    musl) echo musl-gcc ;;
    glibc) echo gcc ;;
    esac
}

# Hardening that both libraries and twsync get.  Fortify is asked for in vain on Debian's musl,
# which has no fortified headers; Alpine's takes it up.
harden_flags() {
    local flags="-fstack-protector-strong -fstack-clash-protection -ftrivial-auto-var-init=zero"
    case $(uname -m) in
    x86_64) flags+=" -fcf-protection" ;;
    aarch64) flags+=" -mbranch-protection=standard" ;;
    esac
    echo "$flags -D_FORTIFY_SOURCE=3"
}

lib_cflags() {
    case $1 in
    musl) echo "-O2 -fPIC -ffunction-sections -fdata-sections $(harden_flags)" ;;
    glibc) echo "-O2 -fPIC -fno-omit-frame-pointer" ;; # sanitizers walk the stack by it
    esac
}

# What a library depends on, in a dozen digits.  The headers of libraries before it count too.
lib_key() {
    local flavour=$1 lib=$2
    {
        sha256sum <"$(dsc "$lib")"
        declare -f "build_$lib"
        lib_cflags "$flavour"
        "$(flavour_cc "$flavour")" --version
        libc_version "$flavour"
        [[ $lib != libpq ]] || lib_key "$flavour" openssl
    } | sha256sum | cut -c1-12
}

lib_dir() { echo "$CACHE/lib/$1/$2-$(src_version "$2")-$(lib_key "$1" "$2")"; }

libc_version() {
    case $1 in
    musl) echo "musl $(dpkg-query -W -f '${Version}' musl-dev)" ;;
    glibc) echo "glibc $(dpkg-query -W -f '${Version}' libc6-dev)" ;;
    alpine) echo "musl $(apk list -I musl | sed 's/^musl-\([^ ]*\).*/\1/')" ;;
    esac
}

# Recipes run in the unpacked source with FLAVOUR, CC, CFLAGS and OUT set, and leave OUT/include
# and OUT/lib.

build_zlib() {
    ./configure --static
    make -j"$(nproc)" libz.a
    cp zlib.h zconf.h "$OUT/include"
    cp libz.a "$OUT/lib"
}

# A line may be long: lists of tables.  inih's default is 200 bytes on the stack.
build_inih() {
    # shellcheck disable=SC2086
    "$CC" $CFLAGS -DINI_USE_STACK=0 -DINI_ALLOW_REALLOC=1 -DINI_MAX_LINE=1048576 -c ini.c -o ini.o
    ar rcs "$OUT/lib/libinih.a" ini.o
    cp ini.h "$OUT/include"
}

# Nothing is loaded at run time (dso, module, engine): a static program could not.  The rest that
# is left out is what TLS to a PostgreSQL server never uses.  Certificates of the host are found
# where distributions keep them, below /etc/ssl.
build_openssl() {
    local kernel_headers
    kernel_headers="-idirafter /usr/include -idirafter /usr/include/$(gcc -dumpmachine)"
    [[ $FLAVOUR = musl ]] || kernel_headers=
    # shellcheck disable=SC2086
    ./Configure --prefix=/usr --libdir=lib --openssldir=/etc/ssl \
        no-shared no-dso no-module no-engine no-legacy no-tests no-apps no-docs no-async \
        no-comp no-dtls no-quic no-ssl3 no-srp no-cmp no-cms no-ts no-rfc3779 no-ocsp no-ct \
        no-aria no-bf no-blake2 no-camellia no-cast no-idea no-md4 no-mdc2 no-rc2 no-rc4 no-rc5 \
        no-rmd160 no-seed no-sm2 no-sm3 no-sm4 no-whirlpool no-gost no-argon2 no-ml-dsa \
        no-slh-dsa no-siphash $CFLAGS $kernel_headers
    make -j"$(nproc)" build_libs
    cp -r include/openssl "$OUT/include"
    cp libssl.a libcrypto.a "$OUT/lib"
}

# The status endpoint: plain GET on one thread of ours, nothing of TLS, forms or authentication.
build_microhttpd() {
    local kernel_headers
    kernel_headers="-idirafter /usr/include -idirafter /usr/include/$(gcc -dumpmachine)"
    [[ $FLAVOUR = musl ]] || kernel_headers=
    ./configure --disable-shared --enable-static --disable-doc --disable-examples \
        --disable-tools --disable-curl --disable-https --disable-messages \
        --disable-postprocessor --disable-dauth --disable-bauth --disable-httpupgrade \
        --disable-cookie --enable-itc=pipe CPPFLAGS="$kernel_headers"
    make -j"$(nproc)" -C src/microhttpd
    cp src/include/microhttpd.h "$OUT/include"
    cp src/microhttpd/.libs/libmicrohttpd.a "$OUT/lib"
}

# Debian's patches put the socket folder and pg_service.conf where Debian's own clients look.
build_libpq() {
    local ssl
    ssl=$(lib_dir "$FLAVOUR" openssl)
    ./configure --prefix=/usr --sysconfdir=/etc/postgresql-common --with-ssl=openssl \
        --without-readline --without-zlib --without-icu --without-gssapi --without-ldap \
        CPPFLAGS="-isystem $ssl/include" LDFLAGS="-L$ssl/lib"
    make -j"$(nproc)" -C src/backend generated-headers
    make -j"$(nproc)" -C src/common libpgcommon_shlib.a
    make -j"$(nproc)" -C src/port libpgport_shlib.a
    make -j"$(nproc)" -C src/interfaces/libpq all-static-lib
    cp src/interfaces/libpq/{libpq-fe.h,libpq-events.h} "$OUT/include"
    cp src/include/{postgres_ext.h,pg_config.h,pg_config_ext.h} "$OUT/include"
    cp src/interfaces/libpq/libpq.a src/common/libpgcommon_shlib.a src/port/libpgport_shlib.a \
        "$OUT/lib"
}

# Built beside its place and moved there whole: a broken build is never taken for a library.
lib_make() {
    local lib=$2 dir work
    dir=$(lib_dir "$1" "$lib")
    work=$CACHE/build/$1-$lib
    export FLAVOUR=$1 OUT=$dir.part CC CFLAGS SOURCE_DATE_EPOCH
    CC=$(flavour_cc "$1")
    CFLAGS=$(lib_cflags "$1")
    rm -rf "$work" "$OUT"
    mkdir -p "$CACHE/build" "$OUT/include" "$OUT/lib"
    dpkg-source --no-check -x "$(dsc "$lib")" "$work"
    cd "$work"
    SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -S Timestamp) # OpenSSL keeps its build date
    "build_$lib"
    mv "$OUT" "$dir"
    cd "$CACHE"
    rm -rf "$work"
}

libs_build() {
    local flavour=$1 lib dir
    [[ $flavour != alpine ]] || return 0
    src_fetch
    for lib in "${LIBS[@]}"; do
        dir=$(lib_dir "$flavour" "$lib")
        [[ -d $dir ]] || step "$flavour $lib $(src_version "$lib")" lib_make "$flavour" "$lib"
    done
}

# One build at a time in a cache.  The lock goes with the process that holds it.
cache_lock() {
    mkdir -p "$CACHE" || die "could not make the cache folder $CACHE"
    exec {LOCK}>"$CACHE/lock"
    flock -n "$LOCK" && return
    echo "  waiting for another build to end"
    flock "$LOCK"
}

cache_unlock() { exec {LOCK}>&-; }

# ---- compiling twsync -------------------------------------------------------------------------
# A kind is one way to compile: release, debug, hard, fuzz.

kind_flavour() {
    case $1 in
    release) if on_alpine; then echo alpine; else echo musl; fi ;;
    debug | hard | fuzz) echo glibc ;;
    *) die "unknown kind \"$1\": release, debug, hard or fuzz" ;;
    esac
}

kind_cc() {
    case $1 in
    release) if on_alpine; then echo gcc; else echo musl-gcc; fi ;;
    debug | hard) echo gcc ;;
    fuzz) echo clang ;;
    esac
}

kind_packages() {
    if on_alpine; then
        printf '%s\n' "${ALPINE_PACKAGES[@]}"
    else
        printf '%s\n' "${BUILD_PACKAGES[@]}"
        [[ $1 != fuzz ]] || printf '%s\n' clang libclang-rt-dev
    fi
}

kind_cflags() {
    local warnings="-Wall -Wextra -Wshadow -Wconversion -Wundef -Wvla -Wwrite-strings -Wformat=2"
    local sanitize="-g -O1 -fno-omit-frame-pointer -DTWSYNC_TEST"
    echo "-std=c11 -D_GNU_SOURCE"
    case $1 in
    release)
        echo "$warnings -Wmissing-prototypes -Werror -O2 -fPIE"
        echo "-ffunction-sections -fdata-sections $(harden_flags)"
        ;;
    debug | hard)
        # gcc sees uninitialised variables that are not, once sanitizers rewrite the code.
        echo "$warnings -Wmissing-prototypes -Werror -Wno-maybe-uninitialized $sanitize"
        echo "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
        [[ $1 != hard ]] || echo "-DTWSYNC_HARD"
        ;;
    fuzz) echo "$sanitize -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined" ;;
    esac
}

inih_version() {
    if on_alpine; then apk list -I inih | sed 's/^inih-\([0-9]*\).*/\1/'; return; fi
    src_version inih | sed 's/-.*//'
}

# Headers, and the versions that no header tells.
kind_includes() {
    local flavour lib
    flavour=$(kind_flavour "$1")
    if [[ $flavour = alpine ]]; then
        printf '%s\n' -isystem /usr/include/postgresql
    else
        for lib in "${LIBS[@]}"; do
            printf '%s\n' -isystem "$(lib_dir "$flavour" "$lib")/include"
        done
    fi
    echo "-DTWSYNC_INIH_VERSION=\"r$(inih_version)\""
    echo "-DTWSYNC_LIBC_VERSION=\"$(libc_version "$flavour")\""
}

kind_archives() {
    local flavour=$1 lib archive
    for lib in "${LINK_ORDER[@]}"; do
        for archive in ${ARCHIVES[$lib]}; do
            if [[ $flavour = alpine ]]; then
                archive=${archive#lib}
                echo "-l${archive%.a}"
            else
                echo "$(lib_dir "$flavour" "$lib")/lib/$archive"
            fi
        done
    done
}

# The link line of the release.  Debian's musl-gcc knows -static and shared, not static-pie, so
# the start files of a position independent static program are named here.  Alpine's gcc knows it.
kind_link() {
    local flavour musl z=-Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code,--gc-sections
    flavour=$(kind_flavour "$1")
    case $flavour in
    alpine)
        printf '%s\n' -static-pie -s "$z"
        kind_archives alpine
        ;;
    musl)
        musl=/usr/lib/$(gcc -dumpmachine | sed 's/-gnu/-musl/')
        printf '%s\n' -s "$z" -nostartfiles -Wl,-static,-pie,--no-dynamic-linker,-z,text \
            "$musl/rcrt1.o" "$musl/crti.o" "$(gcc -print-file-name=crtbeginS.o)"
        kind_archives musl
        printf '%s\n' "$(gcc -print-file-name=crtendS.o)" "$musl/crtn.o"
        ;;
    glibc)
        kind_archives glibc
        echo -lm
        ;;
    esac
}

# compile KIND SOURCE OUTPUT [FLAG...].  With -c among the flags nothing is linked.
compile() {
    local kind=$1 source=$2 output=$3 flags includes link=()
    shift 3
    read -r -d '' -a flags < <(kind_cflags "$kind") || true
    mapfile -t includes < <(kind_includes "$kind")
    [[ " $* " = *" -c "* ]] || mapfile -t link < <(kind_link "$kind")
    "$(kind_cc "$kind")" "${flags[@]}" "${includes[@]}" "$@" "$source" -o "$output" "${link[@]}"
}

# Whatever decides how a program comes out.
program_key() {
    {
        cat "$HERE/twsync.c" "$HERE/twsync.h"
        kind_cflags "$1"
        kind_includes "$1"
        kind_link "$1"
        "$(kind_cc "$1")" --version
    } | sha256sum
}

program_make() {
    cd "$HERE" # so that __FILE__ is twsync.c wherever the checkout is
    compile "$1" twsync.c "$2.part"
    [[ $1 != release ]] || release_check "$2.part"
    mv -f "$2.part" "$2"
}

# Holds the release to what the README says of it.
release_check() {
    local headers bytes
    headers=$(readelf -hldW "$1")
    bytes=$(stat -c %s "$1")
    [[ $headers = *"Type:"*"DYN "* ]] || die "$1 is not position independent"
    [[ $headers != *INTERP* && $headers != *"(NEEDED)"* ]] || die "$1 is not static"
    [[ $headers != *TEXTREL* ]] || die "$1 has text relocations"
    [[ $headers = *GNU_RELRO* && $headers = *BIND_NOW* ]] || die "$1 has no full RELRO"
    [[ $headers = *GNU_STACK*" RW "* && $headers != *" RWE "* ]] ||
        die "$1 has an executable stack or segment"
    ((bytes < MAX_BYTES)) || die "$1 has $bytes bytes, more than $MAX_BYTES"
}

# Packages and libraries for a kind.  Leaves the cache locked.
kind_ready() {
    local flavour packages
    flavour=$(kind_flavour "$1")
    if [[ $flavour = glibc ]] && on_alpine; then die "the sanitizers of a $1 build need glibc"; fi
    mapfile -t packages < <(kind_packages "$1")
    need "${packages[@]}"
    cache_lock
    libs_build "$flavour"
}

# program KIND OUTPUT: builds it unless the one there came from the same inputs.
program() {
    local kind=$1 output=$2 stamp key was
    [[ -e $HERE/twsync.c ]] || die "twsync.c is missing"
    kind_ready "$kind"
    mkdir -p "$CACHE/stamp"
    stamp=$CACHE/stamp/$(sha256sum <<<"$HERE/$output" | cut -c1-16)
    key=$(program_key "$kind")
    was=$(cat "$stamp" 2>/dev/null) || true
    if [[ ! -x $HERE/$output || $was != "$key $(sha256sum <"$HERE/$output")" ]]; then
        step "$kind $output" program_make "$kind" "$output"
        echo "$key $(sha256sum <"$HERE/$output")" >"$stamp"
    fi
    cache_unlock
    printf './%s: %s bytes\n' "$output" "$(stat -c %s "$HERE/$output")"
}

# ---- commands ---------------------------------------------------------------------------------

cmd_release() { program release twsync; }
cmd_debug() { program debug twsync-debug; }
cmd_hard() { program hard twsync-hard; }

cmd_cc() {
    [[ $# -ge 3 ]] || die "usage: ./build.sh cc KIND SOURCE OUTPUT [FLAG...]"
    kind_ready "$1"
    cache_unlock
    cd "$FROM"
    compile "$@"
}

cmd_fetch() {
    [[ $# = 1 ]] || die "usage: ./build.sh fetch DIR"
    [[ -z ${TWSYNC_SOURCES:-} ]] || die "fetch wants a network: unset TWSYNC_SOURCES"
    local lib file dir=$1
    [[ $dir = /* ]] || dir=$FROM/$dir
    need dpkg-dev
    cache_lock
    src_fetch
    mkdir -p "$dir"
    for lib in "${LIBS[@]}"; do
        rm -f "$dir/${PACKAGE[$lib]}"_*.dsc # of an earlier fetch: there can be only one
        for file in "$SRC/${PACKAGE[$lib]}"_*; do
            cp "$file" "$dir"
        done
    done
    cache_unlock
    echo "sources are in $dir; build from them with: TWSYNC_SOURCES=$dir ./build.sh"
}

cmd_lint() { exec "$HERE/tests/lint.sh"; }

cmd_test() {
    need "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
    need_postgres
    need_promtool
    servers_begin
    cmd_release
    cmd_debug
    servers_wait
    export PATH=$PATH:$CACHE/tools/usr/bin
    TWSYNC_CACHE=$CACHE exec "$HERE/tests/run.sh" "$@"
}

cmd_demo() {
    cmd_release
    need_postgres
    exec "$HERE/tests/demo.sh" "$@"
}

cmd_bench() {
    {
        need "${BUILD_PACKAGES[@]}" python3 python3-psycopg2
        need_postgres
        want_pglogical
        cmd_release
    } >&2 # the figures have standard output to themselves
    exec /usr/bin/python3 -B "$HERE/tests/bench/bench.py" "$@"
}

cmd_clean() {
    rm -f "$HERE"/twsync "$HERE"/twsync-debug "$HERE"/twsync-hard "$HERE"/*.part
    [[ ${1:-} != all ]] || rm -rf "${CACHE:?}"/{apt,src,lib,pg,build,log,stamp,lock}
}

cmd_help() {
    cat <<'END'
./build.sh               the program: ./twsync, static, stripped, hardened
./build.sh demo          two throwaway servers, two-way sync, a conflict, a kill: the whole story
./build.sh test [NAME]   every test, or those named
./build.sh bench [CASE]  twsync beside native replication and pglogical; tests/bench/bench.py
./build.sh debug         ./twsync-debug: sanitizers and test points
./build.sh hard          ./twsync-hard: as debug, with tiny buffers and batches
./build.sh lint          the rules of the house, checked
./build.sh fetch DIR     fill DIR with the libraries' sources, for TWSYNC_SOURCES=DIR ./build.sh
./build.sh cc KIND SOURCE OUTPUT [FLAG...]
                         compile one file as release, debug, hard or fuzz would be
./build.sh clean [all]   remove the programs; with all, the cached libraries too

TWSYNC_CACHE=DIR         where libraries and sources are kept (default: ~/.cache/twsync)
TWSYNC_SOURCES=DIR       build from this folder, with no network
END
}

main() {
    local command=${1:-release}
    [[ $# -eq 0 ]] || shift
    cd "$HERE"
    case $command in
    -h | --help) command=help ;;
    esac
    declare -F "cmd_$command" >/dev/null ||
        die "unknown command \"$command\"; ./build.sh help lists them"
    "cmd_$command" "$@"
}

main "$@"
