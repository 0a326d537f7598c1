"""Jobs along a trained potential's flow: samples, densities, scores and refinement."""
