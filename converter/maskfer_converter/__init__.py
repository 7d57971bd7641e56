"""maskfer's converter: Keras models to self-describing int8 TFLite files."""
