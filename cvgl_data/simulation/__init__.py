"""A procedural city with exact geometry: world, ray caster, tile renderer."""
