"""maskfer's workstation side: masks, data sets, networks, training and evaluation."""
