"""References to cite: atomloom, the paper of the model, and the data set where it is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """Publication, or software."""

    key: str
    """BibTeX key."""
    authors: str
    """Authors, joined by `and`."""
    title: str
    where: str
    """Journal with volume and page, or conference."""
    year: int | None
    address: str = ""
    """Web address, by DOI where there is one."""
    version: str = ""
    """Version of software."""

    @property
    def text(self) -> str:
        """Reference in one line."""
        names = self.authors.strip("{}").split(" and ")
        people = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        rest = [self.title, self.where, f"version {self.version}" if self.version else ""]
        year = f" ({self.year})" if self.year else ""
        return f"{people}: {', '.join(filter(None, rest))}{year}"

    @property
    def bibtex(self) -> str:
        """BibTeX entry."""
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            "howpublished": self.where,
            "year": str(self.year or ""),
            "version": self.version,
            "url": self.address,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


COMFORMER = Citation(
    "comformer2024",
    "K. Yan and C. Fu and X. Qian and X. Qian and S. Ji",
    "Complete and Efficient Graph Transformers for Crystal Material Property Prediction",
    "ICLR",
    2024,
    "https://arxiv.org/abs/2403.11857",
)
TENSORNET = Citation(
    "tensornet2023",
    "G. Simeon and G. De Fabritiis",
    "TensorNet: Cartesian Tensor Representations for Efficient Learning of Molecular Potentials",
    "NeurIPS",
    2023,
    "https://arxiv.org/abs/2306.06482",
)
MODELS = {
    "icomformer": COMFORMER,
    "ecomformer": COMFORMER,
    "alignn": Citation(
        "alignn2021",
        "K. Choudhary and B. DeCost",
        "Atomistic Line Graph Neural Network for improved materials property predictions",
        "npj Comput. Mater. 7, 185",
        2021,
        "https://doi.org/10.1038/s41524-021-00650-1",
    ),
    "painn": Citation(
        "painn2021",
        "K. T. Schütt and O. T. Unke and M. Gastegger",
        "Equivariant message passing for the prediction of tensorial properties and molecular spectra",
        "ICML, PMLR 139, 9377",
        2021,
        "https://arxiv.org/abs/2102.03150",
    ),
    "tensornet": TENSORNET,
    "tensornet_property": TENSORNET,
    "nequip": Citation(
        "nequip2022",
        "S. Batzner and A. Musaelian and L. Sun and M. Geiger and J. P. Mailoa and M. Kornbluth and N. Molinari and T. E. Smidt and B. Kozinsky",
        "E(3)-equivariant graph neural networks for data-efficient and accurate interatomic potentials",
        "Nature Communications 13, 2453",
        2022,
        "https://doi.org/10.1038/s41467-022-29939-5",
    ),
    "crystal_transformer": Citation(
        "crystalformer2024",
        "T. Taniai and R. Igarashi and Y. Suzuki and N. Chiba and K. Saito and Y. Ushiku and K. Ono",
        "Crystalformer: Infinitely Connected Attention for Periodic Structure Encoding",
        "ICLR",
        2024,
        "https://arxiv.org/abs/2403.11686",
    ),
    "chebyshev": Citation(
        "aenet2017",
        "N. Artrith and A. Urban and G. Ceder",
        "Efficient and accurate machine-learning interpolation of atomic energies in compositions with many species",
        "Phys. Rev. B 96, 014112",
        2017,
        "https://doi.org/10.1103/PhysRevB.96.014112",
    ),
    "svr": Citation(
        "svr2004",
        "A. J. Smola and B. Schölkopf",
        "A tutorial on support vector regression",
        "Statistics and Computing 14, 199",
        2004,
        "https://doi.org/10.1023/B:STCO.0000035301.49549.88",
    ),
    "extra_trees": Citation(
        "extratrees2006",
        "P. Geurts and D. Ernst and L. Wehenkel",
        "Extremely randomized trees",
        "Machine Learning 63, 3",
        2006,
        "https://doi.org/10.1007/s10994-006-6226-1",
    ),
    "gaussian_process": Citation(
        "gaussianprocesses2006",
        "C. E. Rasmussen and C. K. I. Williams",
        "Gaussian Processes for Machine Learning",
        "MIT Press",
        2006,
        "https://gaussianprocess.org/gpml/",
    ),
    "gradient_boosting": Citation(
        "lightgbm2017",
        "G. Ke and Q. Meng and T. Finley and T. Wang and W. Chen and W. Ma and Q. Ye and T.-Y. Liu",
        "LightGBM: A Highly Efficient Gradient Boosting Decision Tree",
        "NeurIPS",
        2017,
        "https://papers.nips.cc/paper/6907",
    ),
}
"""Papers by name of the model."""
SCIKIT_LEARN = Citation(
    "scikitlearn2011",
    "F. Pedregosa and others",
    "Scikit-learn: Machine Learning in Python",
    "Journal of Machine Learning Research 12, 2825",
    2011,
    "https://jmlr.org/papers/v12/pedregosa11a.html",
)
FITTED_BY_SCIKIT_LEARN = ("svr", "extra_trees", "gaussian_process", "gradient_boosting")
DATA = (
    (
        r"^jarvis:",
        Citation(
            "jarvis2020",
            "K. Choudhary and others",
            "The joint automated repository for various integrated simulations (JARVIS) for data-driven materials design",
            "npj Comput. Mater. 6, 173",
            2020,
            "https://doi.org/10.1038/s41524-020-00440-1",
        ),
    ),
    (
        r"^mp:|matbench",
        Citation(
            "materialsproject2013",
            "A. Jain and others",
            "Commentary: The Materials Project: A materials genome approach to accelerating materials innovation",
            "APL Mater. 1, 011002",
            2013,
            "https://doi.org/10.1063/1.4812323",
        ),
    ),
    (
        r"matbench",
        Citation(
            "matbench2020",
            "A. Dunn and Q. Wang and A. Ganose and D. Dopp and A. Jain",
            "Benchmarking materials property prediction methods: the Matbench test set and Automatminer reference algorithm",
            "npj Comput. Mater. 6, 138",
            2020,
            "https://doi.org/10.1038/s41524-020-00406-3",
        ),
    ),
    (
        r"(^|/)rmd17",
        Citation(
            "rmd17",
            "A. S. Christensen and O. A. von Lilienfeld",
            "On the role of gradients for machine learning of molecular energies and forces",
            "Mach. Learn.: Sci. Technol. 1, 045018",
            2020,
            "https://doi.org/10.1088/2632-2153/abba6f",
        ),
    ),
    (
        r"(^|/)mlearn",
        Citation(
            "mlearn2020",
            "Y. Zuo and others",
            "Performance and Cost Assessment of Machine Learning Interatomic Potentials",
            "J. Phys. Chem. A 124, 731",
            2020,
            "https://doi.org/10.1021/acs.jpca.9b08723",
        ),
    ),
)
"""Pattern of a source of `dataset.source`, and the reference of that data set."""


def citations(version: str, model: str, sources: Sequence[str]) -> list[Citation]:
    """References of a run.

    Args:
        version: of atomloom.
        model: its name in the config.
        sources: `dataset.source`.
    """
    own = Citation("atomloom", "{The atomloom developers}", "atomloom", "", None, version=version)
    found = [own, *([MODELS[model]] if model in MODELS else [])]
    found += [SCIKIT_LEARN] if model in FITTED_BY_SCIKIT_LEARN else []
    return found + [
        reference
        for pattern, reference in DATA
        if any(re.search(pattern, source.lower()) for source in sources)
    ]
