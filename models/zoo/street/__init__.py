"""A street-scene detector (vehicle, pedestrian, cyclist), trained on drawn scenes."""
