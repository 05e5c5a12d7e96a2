#!/bin/sh
# Writes the lock files from the ranges in pyproject.toml. Needs uv.
set -eu
cd "$(dirname "$0")/.."

# lock NAME SOURCE ...: one set of versions, so that what is served is what was tested.
lock() {
    output="requirements/$1.lock"
    shift
    uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-annotate --quiet --custom-compile-command 'make lock' --output-file "$output" "$@"
}

lock dev pyproject.toml --extra cpu --extra export --extra dev "$@"
lock bench pyproject.toml --extra cpu --extra bench --constraint requirements/dev.lock "$@"
lock fuzz pyproject.toml --extra cpu --extra export --extra dev --extra fuzz --constraint requirements/dev.lock "$@"
lock audit pyproject.toml --extra cpu --extra export --extra dev --extra audit --constraint requirements/dev.lock "$@"
lock serve-cpu pyproject.toml --extra cpu --constraint requirements/dev.lock
lock serve-gpu pyproject.toml --extra gpu --constraint requirements/dev.lock
# Of what pyproject.toml names, the lowest versions that it allows: `make test-lowest`.
lock lowest pyproject.toml --resolution lowest-direct --extra cpu --extra export --extra dev "$@"
# What an image is built with: the build system's own requirements.
python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
    lock build - --constraint requirements/dev.lock "$@"
