"""The page of `train.report`: what is on it, a module each, and the drawing of charts in SVG."""
