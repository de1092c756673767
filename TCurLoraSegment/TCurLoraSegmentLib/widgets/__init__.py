"""The panel: one module for each of its sections. Only here is Qt used."""
