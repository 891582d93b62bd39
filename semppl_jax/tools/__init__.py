"""Tools beside training: foreground masks, converters. Nothing imports them."""
