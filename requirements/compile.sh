#!/bin/sh
# Writes the lock files from the ranges in pyproject.toml. Needs uv.
set -eu
cd "$(dirname "$0")/.."

# One set of versions: what is served is what was tested.
lock() {
    output="requirements/$1.lock"
    shift
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-annotate --quiet --custom-compile-command 'make lock' --output-file "$output" "$@"
}

lock dev --extra cpu --extra export --extra dev "$@"
lock bench --extra cpu --extra bench --constraint requirements/dev.lock "$@"
lock fuzz --extra cpu --extra export --extra dev --extra fuzz --constraint requirements/dev.lock "$@"
lock audit --extra cpu --extra export --extra dev --extra audit --constraint requirements/dev.lock "$@"
lock serve-cpu --extra cpu --constraint requirements/dev.lock
lock serve-gpu --extra gpu --constraint requirements/dev.lock
