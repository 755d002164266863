"""A server for exported models, with the REST API of TensorFlow Serving."""
