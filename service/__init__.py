"""tomau's service: colours black-and-white photographs over HTTP."""

import os

# Read by ONNX Runtime when it is loaded: these are people's private photographs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
