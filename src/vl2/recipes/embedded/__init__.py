"""How the embedded model is made: its shape, its pictures, its stages."""
