#!/bin/sh
# Every shared library that the gpu image (tomau:gpu) lacks, and who asks for it. libcuda.so.1 alone comes from the machine:
# fails when another is missing. To be run by hand after the image was built; it needs no GPU.
set -eu
missing=$(docker run --rm --interactive --network none --entrypoint bash tomau:gpu -s <<'EOF'
site=$(echo /opt/tomau/lib/python3*/site-packages)
LD_LIBRARY_PATH=$(find "$site" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
export LD_LIBRARY_PATH
find "$site" -type f -name '*.so*' -exec sh -c 'ldd "$1" 2>/dev/null | sed -n "s|^\s*\(.*\) => not found|\1 <- ${1##*/}|p"' - {} \;
EOF
)
echo "$missing"
if echo "$missing" | grep -qv '^libcuda\.so\.1 '; then exit 1; fi
