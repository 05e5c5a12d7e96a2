#!/usr/bin/env bash
# Builds the cpu image, brings the compose project up, and checks it: make test-containers
#
# CONTAINER_TOOLS  folder of scripts that start an engine of their own and make stand-ins for the base images; without
#                  it the engine that `docker` talks to is taken, and images come from where that gets them
# PYTHON           of the development set-up
#
# Where no engine can run, that is said and nothing fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=${CONTAINER_TOOLS:-../shared/tools/containers}
export COMPOSE_PROJECT_NAME=tomau-test COLORIZE_NETWORK=tomau-test DOCKER_BUILDKIT=1

skip() {
    printf '\n%s\n*** CONTAINER TESTS SKIPPED: %s\n%s\n\n' "$stars" "$1" "$stars" >&2
    exit 0
}
stars=$(printf '*%.0s' {1..100})

compose() { docker compose --profile gateway --profile monitoring "$@"; }

clean_up() {
    compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
    if [[ -n ${state:-} ]]; then
        "$tools/engine.sh" down "$state" || true
        rm -rf --one-file-system "$state"
    fi
}

# What the registry would have been asked for, made here.
stand_ins() {
    local python nginx prometheus
    python=$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)
    nginx=$(compose config --images | grep nginx)
    prometheus=$(compose config --images | grep prometheus)
    "$tools/base-image.sh" "${python##*-}" "$python" "$state/base.tar"
    docker build --quiet --build-arg "BASE=$python" --tag "$nginx" --file "$tools/nginx.Dockerfile" "$tools" &
    docker build --quiet --build-arg "BASE=$python" --tag "$prometheus" --file "$tools/prometheus.Dockerfile" "$tools" &
    wait -n
    wait -n
}

if [[ -x $tools/engine.sh ]]; then
    [[ $EUID == 0 ]] || skip "an engine of their own needs root"
    state=$(mktemp -d)
    trap clean_up EXIT
    code=0
    "$tools/engine.sh" up "$state" || code=$?
    [[ $code != 3 ]] || skip "no container engine can run here"
    [[ $code == 0 ]] || exit "$code"
    # shellcheck source=/dev/null
    . "$state/env"
    stand_ins
elif docker info >/dev/null 2>&1; then
    trap clean_up EXIT
else
    skip "there is no container engine, and no $tools/engine.sh to start one"
fi

compose build --quiet
"${PYTHON:-.venv/bin/python}" -m pytest --durations=0 --durations-min=1 "$@" tests/containers/files.py tests/containers/running.py || {
    code=$?
    compose logs --no-color --tail 60
    exit "$code"
}
