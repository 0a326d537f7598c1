"""Wide residual network potential for images: the family of the VAPO paper."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.potentials.blocks import ResidualBlock, blocks_of
from vapo_fast.potentials.image import ImagePotential


class WideResNetPotential(ImagePotential):
    """A convolutional encoder whose last features are summed over the image to one number.

    The layers are a 3x3 stem, ``blocks`` residual blocks at each resolution with average pooling in between, SiLU, and
    a learned linear functional summed over positions. The functional takes either sign, and so does the curvature of
    the potential. Sampling ascends Phi and contracts where its curvature is negative, which a head that is bounded
    below could not give. Activations are smooth (SiLU), there is no batch normalisation, and time enters by FiLM.

    Arguments as for `ImagePotential`.
    """

    def build(self) -> None:
        inputs = (self.sizes[0], *self.sizes[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(before if i == 0 else size, size, self.features) for i in range(self.blocks))
            for before, size in zip(inputs, self.sizes, strict=True)
        )
        self.output = nn.Conv2d(self.sizes[-1], 1, 1, bias=False)
        # Start from f = 0: the potential is then the exact one of data N(0, data_scale^2 I).
        nn.init.zeros_(self.output.weight)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        embedding = self.embed(position)
        h = self.stem(self.patches(z))
        for level, stage in enumerate(self.stages):
            if level:
                h = F.avg_pool2d(h, 2)
            for block in blocks_of(stage):
                h = block(h, embedding)
        output: Tensor = self.output(F.silu(h))
        return output.flatten(1).sum(1)
