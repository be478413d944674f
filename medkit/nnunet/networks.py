"""nnU-Net's U-Net, built by MONAI, and the networks of all folds as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from monai.networks.nets import DynUNet


class PlainConvUNet(DynUNet):
    """nnU-Net's plain U-Net of two convolutions a stage: MONAI's DynUNet with the kernels and biases of nnU-Net.

    DynUNet's decoder takes the kernels of the level below, and its convolutions have no bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        bias: bool = True,
        eps: float = 1e-5,
        affine: bool = True,
        negative_slope: float = 0.01,
    ) -> None:
        """Build the network.

        `features`, `kernel_sizes` and `strides` have an entry for each stage; `bias`: whether convolutions have one;
        `eps` and `affine` are those of instance normalisation, `negative_slope` that of the leaky ReLU.
        """
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_sizes,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=features,
            norm_name=("INSTANCE", {"affine": affine, "eps": eps}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": negative_slope}),
            trans_bias=bias,
        )
        for block in self.modules():
            if isinstance(block, UnetBasicBlock) and bias:
                for conv in (block.conv1.conv, block.conv2.conv):
                    conv.bias = torch.nn.Parameter(torch.zeros(conv.out_channels))

    def get_upsamples(self) -> torch.nn.ModuleList:
        """Build the decoder's stages, the deepest one first."""
        layers: torch.nn.ModuleList = self.get_module_list(
            self.filters[1:][::-1],
            self.filters[:-1][::-1],
            self.kernel_size[:-1][::-1],
            self.strides[1:][::-1],
            UnetUpBlock,
            self.upsample_kernel_size[::-1],
            trans_bias=self.trans_bias,
        )
        return layers


class FoldEnsemble(torch.nn.Module):
    """The networks of all folds of a training, which answer with their mean."""

    def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mean of the folds' logits, (N, heads, ...), for an image (N, C, ...)."""
        answers = [network(image) for network in self.networks]
        return torch.stack(answers).mean(0) if len(answers) > 1 else answers[0]
