"""Derivations, by sympy, of the results that have a closed form.

Every derivation starts from its definition and lets sympy solve, integrate, differentiate or expand; where
a step is an identity it is proved by simplifying the difference of its sides to zero. Nothing is typed in
as a result. tests/ratedist/test_symbolic.py evaluates every result beside the function that implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ratedist.errors import InputError, RatedistError

__all__ = ["DERIVATIONS", "Derivation", "Step", "derive", "derive_all", "to_latex"]

# sympy is not typed: its expressions are Any here.
Expression = Any


@dataclass(frozen=True)
class Step:
    """One line of a derivation: what is done, and the expression or equation it gives."""

    text: str
    expression: Expression


@dataclass(frozen=True)
class Derivation:
    """A result and how it came about.

    Attributes:
        name: short name, the key in ``DERIVATIONS``.
        title: what is derived, in words.
        steps: from the definition to the result.
        results: the derived expressions by name, ready for ``sympy.lambdify``.
        implemented_by: the functions of ratedist that compute the same; empty where the result is a limit
            that no function needs.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    results: dict[str, Expression]
    implemented_by: tuple[str, ...] = ()

    def latex(self) -> str:
        """The derivation as a LaTeX subsection."""
        import sympy as sp

        lines = [rf"\subsection*{{{self.title}}}"]
        for step in self.steps:
            lines += [f"{step.text}", r"\[", sp.latex(step.expression), r"\]"]
        if self.implemented_by:
            names = ", ".join(rf"\texttt{{{_escape(name)}}}" for name in self.implemented_by)
            lines.append(f"Implemented by {names}.")
        return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("_", r"\_")


def _prove_zero(expression: Expression) -> None:
    """Raise where sympy cannot simplify ``expression`` to zero: the derivation would be wrong."""
    import sympy as sp

    if sp.simplify(expression) != 0:
        raise RatedistError(f"derivation failed: {expression} does not simplify to 0")


def _pair() -> tuple[Expression, Expression, Expression]:
    """s and two unit vectors with ⟨x, x_rep⟩ = s, in the plane they span."""
    import sympy as sp

    s = sp.Symbol("s", real=True)
    return s, sp.Matrix([1, 0]), sp.Matrix([s, sp.sqrt(1 - s**2)])


def _scale_rules() -> Derivation:
    import sympy as sp

    _, x, x_rep = _pair()
    n = sp.Symbol("n", positive=True)
    rho = sp.Symbol("rho", positive=True)
    c = sp.Symbol("c", real=True)
    difference = c * x_rep - n * x
    general = sp.expand(sp.simplify((difference.T * difference)[0] / n**2))
    raw = sp.expand(general.subs(c, rho * n))
    own = sp.expand(general.subs(c, n))
    (best,) = sp.solve(sp.diff(general, c), c)
    projection = sp.expand(general.subs(c, best))
    curvature = sp.diff(general, c, 2)
    if not curvature.is_positive:
        raise RatedistError("derivation failed: the stationary scale is not a minimum")
    return Derivation(
        "scale-rules",
        "Squared relative error of each scale rule",
        (
            Step(r"Read back with scale \(c\), in the plane of \(x\) and \(x_\mathrm{rep}\):", general),
            Step(r"Raw, \(c = n_\mathrm{rep} = \rho n\):", raw),
            Step(r"Own norm, \(c = n\):", own),
            Step(r"The derivative in \(c\) vanishes at", sp.Eq(c, best)),
            Step(r"and the second derivative is positive, so this projection is the least error:", curvature),
            Step(r"Projection:", projection),
        ),
        {"raw": raw, "own-norm": own, "projection": projection, "best-scale": best},
        ("ratedist.distortion.error2",),
    )


def _centroid() -> Derivation:
    import sympy as sp

    s, x, other = _pair()
    total = x + other
    length = sp.sqrt(sp.simplify((total.T * total)[0]))
    similarity = sp.simplify((x.T * total)[0] / length)
    two = 2 - 2 * similarity
    _prove_zero(
        sp.simplify((two - (2 - sp.sqrt(2 * (1 + s)))).subs(s, sp.Symbol("t", positive=True) ** 2 - 1))
    )
    m = sp.Symbol("m", integer=True, positive=True)
    j = sp.Symbol("j", integer=True)
    # ⟨x_1, Σ x_j⟩ and |Σ x_j|² from the Gram matrix with 1 on and s off its diagonal.
    inner = sp.expand(1 + sp.summation(s, (j, 2, m)))
    square = sp.factor(sp.expand(m * inner))
    of_m = inner / sp.sqrt(square)
    many = sp.sqrt(sp.simplify(of_m**2))
    return Derivation(
        "centroid",
        "Error against a centroid",
        (
            Step("Two directions: squared length of their sum", sp.simplify(length**2)),
            Step("Similarity of a member to the normalised sum:", similarity),
            Step("Own norm, two members:", two),
            Step(
                r"\(m\) equally similar members: \(\langle x_1, \sum_j x_j\rangle\) and \(|\sum_j x_j|^2\)",
                sp.Tuple(inner, square),
            ),
            Step("Similarity of a member to the centroid:", many),
            Step("Own norm:", 2 - 2 * many),
        ),
        {"two": two, "many": 2 - 2 * many, "similarity": many},
        ("ratedist.distortion.centroid_similarity", "ratedist.distortion.centroid_error2"),
    )


def _best_match() -> Derivation:
    import sympy as sp

    s, tau = sp.symbols("s tau", real=True)
    survival = sp.Function("H")  # 1 − G
    error = sp.Function("f")
    # d(f·H) = f′H + f H′ turns ∫ f dG = −∫ f H′ into boundary terms and ∫ f′H.
    integrand = -error(s) * sp.diff(survival(s), s)
    boundary = -error(s) * survival(s)
    rest = sp.diff(error(s), s) * survival(s)
    _prove_zero(integrand - sp.diff(boundary, s) - rest)
    at_ends = (boundary.subs(s, 1) - boundary.subs(s, tau)).subs(survival(1), 0)
    general = at_ends + sp.Integral(rest, (s, tau, 1))
    own = (at_ends.subs(error(tau), 2 - 2 * tau)) + sp.Integral(
        sp.diff(2 - 2 * s, s) * survival(s), (s, tau, 1)
    )
    # The sphere in three dimensions, F̄(s) = (1 − s)/2, can be integrated to the end.
    count = sp.Symbol("N", positive=True)
    void = sp.exp(-count * (1 - s) / 2)
    direct = sp.simplify(sp.integrate((2 - 2 * s) * sp.diff(void, s), (s, tau, 1)))
    by_parts = own.replace(survival, lambda argument: 1 - void.subs(s, argument)).doit()
    _prove_zero(direct - by_parts)
    conditional = sp.simplify(direct / (1 - void.subs(s, tau)))
    return Derivation(
        "best-match",
        "Error against the best match",
        (
            Step(
                r"With \(H = 1 - G\), the error over absorbed blocks is the integral over \((\tau, 1]\) of",
                integrand,
            ),
            Step(r"By parts, \(H(1) = 0\):", general),
            Step(r"Own norm, \(f(s) = 2 - 2s\):", own),
            Step(r"Three dimensions, \(G(s) = e^{-N(1-s)/2}\), integrated directly:", direct),
            Step(r"which equals the form by parts; given that the block is absorbed:", conditional),
        ),
        {"general": general, "own-norm": own, "sphere-3": direct, "sphere-3-conditional": conditional},
        ("ratedist.distortion.best_match_expectation", "ratedist.distortion.absorbed_error2"),
    )


def _small_rate_error() -> Derivation:
    import sympy as sp

    count, at_s, at_tau = sp.symbols("N F_s F_tau", positive=True)
    ratio = (1 - sp.exp(-count * at_s)) / (1 - sp.exp(-count * at_tau))
    expansion = sp.series(ratio, count, 0, 2).removeO()
    leading = expansion.subs(count, 0)
    correction = sp.factor(expansion.coeff(count, 1))
    return Derivation(
        "small-rate-error",
        "Error at small rates",
        (
            Step(r"The error given absorption is \(f(\tau) + \int_\tau^1 f'(s)\,R(s)\,ds\) with", ratio),
            Step(r"\(N \to 0\): a match is a random exceedance,", leading),
            Step(r"The first correction, in units of \(N\), positive: a best match is nearer", correction),
        ),
        {"ratio": ratio, "leading": leading, "correction": correction},
        ("ratedist.distortion.absorbed_error2",),
    )


def _gaussian_truncated() -> Derivation:
    import sympy as sp

    z, alpha = sp.symbols("z alpha", real=True)
    mu, tau = sp.symbols("mu tau", real=True)
    sigma = sp.Symbol("sigma", positive=True)
    density = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)
    moments = [sp.simplify(sp.integrate(z**k * density, (z, alpha, sp.oo))) for k in range(3)]
    standard = (tau - mu) / sigma
    tail = moments[0].subs(alpha, standard)
    first = sp.expand(mu * moments[0] + sigma * moments[1]).subs(alpha, standard)
    second = sp.expand(mu**2 * moments[0] + 2 * mu * sigma * moments[1] + sigma**2 * moments[2]).subs(
        alpha, standard
    )
    mean = first / tail
    own = 2 - 2 * mean
    projection = 1 - second / tail
    return Derivation(
        "gaussian-truncated",
        "Truncated moments of the Gaussian law",
        (
            Step(r"\(\int_\alpha^\infty z^k \varphi(z)\,dz\) for \(k = 0, 1, 2\):", sp.Tuple(*moments)),
            Step(r"With \(S = \mu + \sigma z\), \(E[S;\,S > \tau]\):", first),
            Step(r"\(E[S \mid S > \tau]\):", mean),
            Step(r"Own norm at small rates, \(2 - 2E[S \mid S > \tau]\):", own),
            Step(r"Projection at small rates, \(1 - E[S^2 \mid S > \tau]\):", projection),
        ),
        {"tail": tail, "first": first, "second": second, "own-norm": own, "projection": projection},
        ("ratedist.similarity.Gaussian.sf", "ratedist.distortion.absorbed_error2"),
    )


def _shares() -> tuple[Expression, Expression, Expression, list[Step], list[Step]]:
    """Λ, the sequential and the Matérn share, and the steps to each."""
    import sympy as sp

    rate, offered = sp.Symbol("q", positive=True), sp.Symbol("n", nonnegative=True)
    intensity = sp.Symbol("Lambda", positive=True)
    kept = sp.Function("N")
    equation = sp.Eq(sp.diff(kept(offered), offered), sp.exp(-rate * kept(offered)))
    solution = sp.dsolve(equation, kept(offered)).rhs
    (constant,) = solution.free_symbols - {rate, offered}
    (value,) = sp.solve(solution.subs(offered, 0), constant)
    number = sp.simplify(solution.subs(constant, value))
    _prove_zero(sp.diff(number, offered) - sp.exp(-rate * number))
    sequential = sp.simplify((number / offered).subs(rate, intensity / offered))
    steps = [
        Step(r"A block survives if none of the \(N\) kept ones exceeds, so offered blocks add", equation),
        Step(r"From \(N(0) = 0\):", sp.Eq(kept(offered), number)),
        Step(r"Share kept, \(\Lambda = nq\):", sequential),
    ]
    age = sp.Symbol("u", positive=True)
    matern = sp.factor(sp.integrate(sp.exp(-intensity * age), (age, 0, 1)))
    matern_steps = [
        Step(
            r"In Mat\'ern's process a point of age \(u\) falls to any earlier point, kept or not:",
            sp.Integral(sp.exp(-intensity * age), (age, 0, 1)),
        ),
        Step("Share kept:", matern),
    ]
    return intensity, sequential, matern, steps, matern_steps


def _sequential_share() -> Derivation:
    import sympy as sp

    intensity, share, _, steps, _ = _shares()
    expansion = sp.series(share, intensity, 0, 4)
    growth = sp.limit(share * intensity / sp.log(intensity), intensity, sp.oo)
    return Derivation(
        "sequential-share",
        "One block at a time",
        (
            *steps,
            Step(r"Small rates:", expansion),
            Step(r"Large batches: \(\Lambda\) times the share, over \(\ln\Lambda\), tends to", growth),
        ),
        {"share": share, "small-rate": expansion.removeO(), "growth": growth},
        ("ratedist.fusion.sequential.sequential_share",),
    )


def _matern_share() -> Derivation:
    import sympy as sp

    intensity, sequential, share, _, steps = _shares()
    expansion = sp.series(share, intensity, 0, 4)
    gap = sp.series(sequential - share, intensity, 0, 3)
    return Derivation(
        "matern-share",
        r"Mat\'ern's process, in which deleted points also delete",
        (
            *steps,
            Step("Small rates:", expansion),
            Step("Fusion one block at a time keeps more, by", gap),
        ),
        {"share": share, "small-rate": expansion.removeO(), "gap": gap.removeO()},
        ("ratedist.fusion.sequential.matern_share",),
    )


def _tree_large_batch() -> Derivation:
    import sympy as sp

    x = sp.Symbol("x", positive=True)
    depth = sp.Symbol("k", positive=True)
    doubling = x * (1 + sp.exp(-x))
    growth = sp.simplify(doubling - x)
    levels = sp.integrate(sp.simplify(1 / growth), x)
    _prove_zero(sp.diff(levels, x) * growth - 1)
    tail = sp.limit(levels * x / sp.exp(x), x, sp.oo)
    return Derivation(
        "tree-large-batch",
        "The plain tree in large batches",
        (
            Step(r"With \(x = qN\) one level of the tree maps \(x\) to", doubling),
            Step(r"Once the growth per level is small, \(dx/dk\) is", growth),
            Step(r"Levels needed to reach \(x\), up to a constant:", sp.Eq(depth, levels)),
            Step(
                r"As \(x \to \infty\), levels times \(x e^{-x}\) tend to the value below, so \(x\) grows as "
                r"\(\ln k = \ln\log_2 B\): the kept blocks of the plain tree hardly grow with the batch.",
                tail,
            ),
        ),
        {"doubling": doubling, "levels": levels, "tail": tail},
        ("ratedist.fusion.tree",),
    )


def _gaussian_closure() -> Derivation:
    import sympy as sp

    number, mu = sp.symbols("N mu", real=True)
    rate, sigma = sp.symbols("q sigma", positive=True)
    density = sp.exp(-((number - mu) ** 2) / (2 * sigma**2)) / (sigma * sp.sqrt(2 * sp.pi))

    def expect(function: Expression) -> Expression:
        return sp.simplify(sp.integrate(function * density, (number, -sp.oo, sp.oo)))

    mean = expect(sp.exp(-rate * number))
    square = expect(sp.exp(-2 * rate * number))
    # E[N e^{−qN}] = −d/dq E[e^{−qN}]
    product = -sp.diff(mean, rate)
    covariance = sp.simplify(product - mu * mean)
    _prove_zero(covariance + rate * sigma**2 * mean)
    return Derivation(
        "gaussian-closure",
        r"Moments of the void probability for a Gaussian number of representatives",
        (
            Step(r"\(E[e^{-qN}]\):", mean),
            Step(r"\(E[e^{-2qN}]\):", square),
            Step(r"\(\mathrm{Cov}(N, e^{-qN})\):", covariance),
        ),
        {"mean": mean, "square": square, "covariance": covariance},
        ("ratedist.fusion.leader", "ratedist.fusion.tree"),
    )


def _spherical_limit() -> Derivation:
    import sympy as sp

    r = sp.Symbol("r", positive=True)
    s, u, inverse = sp.symbols("s u e", positive=True)
    # ∫_s^1 u(1 − u²)^((r−3)/2) du bounds the cap from below, and 1/s times it from above.
    power = (1 - u**2) ** ((r - 1) / 2)
    antiderivative = -power / (r - 1)
    _prove_zero(sp.diff(antiderivative, u) - u * (1 - u**2) ** ((r - 3) / 2))
    cap = -antiderivative.subs(u, s)
    cap_bits = -(sp.expand_log(sp.log(power.subs(u, s)), force=True) - sp.log(r - 1)) / (r * sp.log(2))
    # The constant Γ(r/2)/(√π Γ((r−1)/2)) adds nothing per dimension: both gammas by their asymptotic series.
    stirling = sp.loggamma(1 / inverse).series(inverse, 0, 1).removeO()
    constant = stirling.subs(inverse, 2 / r) - stirling.subs(inverse, 2 / (r - 1))
    per_dimension = sp.limit(sp.expand_log(constant, force=True) / r, r, sp.oo)
    if per_dimension != 0:
        raise RatedistError("derivation failed: the constant of the cap does not vanish per dimension")
    limit = sp.limit(cap_bits, r, sp.oo)
    projection = sp.simplify(limit.subs(s, sp.sqrt(1 - sp.Symbol("D", positive=True))))
    return Derivation(
        "spherical-limit",
        "The spherical-code bound in high dimension",
        (
            Step(r"The cap \(\{u > s\}\) lies between this and \(1/s\) times it, but for a constant:", cap),
            Step(r"The constant's logarithm per dimension tends to", per_dimension),
            Step(r"so that \(-\log_2\bar F(s)/r\) tends to", limit),
            Step(r"and with the projection's error \(D = 1 - s^2\) to Shannon's", projection),
        ),
        {"cap": cap, "limit": limit, "projection": projection},
        ("ratedist.bounds.spherical_code_bound", "ratedist.bounds.spherical_code_limit"),
    )


DERIVATIONS: dict[str, Callable[[], Derivation]] = {
    "scale-rules": _scale_rules,
    "centroid": _centroid,
    "best-match": _best_match,
    "small-rate-error": _small_rate_error,
    "gaussian-truncated": _gaussian_truncated,
    "sequential-share": _sequential_share,
    "matern-share": _matern_share,
    "tree-large-batch": _tree_large_batch,
    "gaussian-closure": _gaussian_closure,
    "spherical-limit": _spherical_limit,
}
"""The derivations by name, in the order in which a reader needs them."""


def derive(name: str) -> Derivation:
    """Carry out one derivation.

    Raises:
        InputError: an unknown name.
        RatedistError: sympy is not installed, or cannot prove a step.
    """
    if name not in DERIVATIONS:
        raise InputError("name", name, f"must be one of {', '.join(DERIVATIONS)}")
    try:
        import sympy  # noqa: F401
    except ImportError:
        raise RatedistError("derivations need sympy: pip install 'ratedist[symbols]'") from None
    return DERIVATIONS[name]()


def derive_all() -> list[Derivation]:
    """Carry out all derivations, in the order of ``DERIVATIONS``."""
    return [derive(name) for name in DERIVATIONS]


def to_latex(derivations: Sequence[Derivation]) -> str:
    """A LaTeX document that holds the derivations."""
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage{amsmath}",
            r"\begin{document}",
            r"\section*{Rate and distortion of fused KV-cache blocks: derivations}",
            *(derivation.latex() for derivation in derivations),
            r"\end{document}",
            "",
        ]
    )
