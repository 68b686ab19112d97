"""The endpoint without Ray: validation, authorisation, limits, problem+json, the Open Inference Protocol, the app."""
