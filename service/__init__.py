"""tomau's service: colours black-and-white photographs over HTTP."""
