"""The models: masked autoencoder, masked image modelling with any backbone, classifiers. Import the module that you
need; nothing is imported here.
"""
