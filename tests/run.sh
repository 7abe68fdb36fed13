#!/usr/bin/env bash
# The test run: `tests/run.sh test` is `make test`, `tests/run.sh verify` is `make verify`. Stops at the first step that fails;
# says at the end how many tests ran and names each one that was skipped.

set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=${CARGO_TARGET_DIR:-target}
LOG=$TARGET/test-run.log
export RUST_BACKTRACE=1
# Warnings fail the lints and the docs below. They are not set for the build: changed flags would build the world twice.
BEGAN=$SECONDS

step() {
    local label=$1 began=$SECONDS rc=0; shift
    printf '\n==> %s\n' "$label"
    "$@" 2>&1 | tee -a "$LOG" || rc=$?
    if [ $rc -ne 0 ]; then
        printf '\n==> FAILED: %s (after %d s)\n' "$label" $((SECONDS - began))
        exit $rc
    fi
    printf '==> %s: %d s\n' "$label" $((SECONDS - began))
}

# A warning of clippy fails; `--` passes flags to the workspace's crates only, so dependencies keep their build.
lints() { cargo clippy --quiet --workspace --all-targets -- -D warnings; }
build() { cargo build --workspace --all-targets; }
docs()  { RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps; }
pages() { "$TARGET/debug/xtask" docs; }

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace "$@"
    else
        cargo test --workspace --all-targets --no-fail-fast "$@"
    fi
}
# The API's own tests once more, each on the other engine.
on_postgres() {
    if cargo nextest --version >/dev/null 2>&1; then
        PLEXUS_TEST_ENGINE=postgres cargo nextest run --workspace --lib -E 'test(http::tests)'
    else
        PLEXUS_TEST_ENGINE=postgres cargo test --workspace --lib --no-fail-fast http::tests
    fi
}
doc_tests() { cargo test --workspace --doc; }

mkdir -p "$TARGET"
: >"$LOG"
step "set-up" deploy/setup/setup.sh
export PATH=$HOME/.cargo/bin:$PATH
case ${1:-test} in
test)
    step "format" cargo fmt --check
    step "lints" lints
    step "build" build
    step "tests" tests
    step "doc tests" doc_tests
    step "documentation of the code" docs
    step "documentation pages" pages
    ;;
verify)
    # Tests that can go further do: more passages of the crash sweep, the playbooks that run for minutes.
    export PLEXUS_VERIFY=1
    step "set-up, for the longer proofs" deploy/setup/setup.sh schemathesis scm
    step "build" build
    step "tests, at length" tests
    step "tests of the API on PostgreSQL" on_postgres
    ;;
*)
    echo "usage: tests/run.sh test|verify" >&2
    exit 2
    ;;
esac
printf '\n'
"$TARGET/debug/xtask" test-report "$LOG"
printf 'all of it took %d s\n' $((SECONDS - BEGAN))
