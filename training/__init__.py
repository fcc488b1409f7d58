"""How the starter pack was made: data, autoencoder, UNet, parser, guidance decoder. Not part of the wheel."""
