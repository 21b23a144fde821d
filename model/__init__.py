"""The network of Mask^X R-CNN, one file per box of the paper's figure: what is computed."""
