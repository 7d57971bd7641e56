"""maskfer's lean runtime: finds faces in camera frames and says what they show."""
