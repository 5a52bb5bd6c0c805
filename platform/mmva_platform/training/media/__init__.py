"""Media mode: backbones are tuned on the media themselves, decoded anew each epoch by stages of Ray Data."""
