"""What the numbers of representation vectors mean: the columns of their tables, and the definitions."""

from fisherlab.records.definitions import Column, Definition

MARGINALS = (
    Column("layer", "layer", "text"),
    Column("vector", "vector", "text"),
    Column("activation", "φ", "text", short="φ"),
    Column("coordinates", "k", "count"),
    Column("constant", "constant", "count"),
    Column("count", "vectors", "count"),
    Column("skewness_median", "│skewness│ median", short="skew\n│med│"),
    Column("kurtosis_median", "kurtosis median", short="kurt\nmed"),
    Column("kurtosis_worst", "kurtosis worst", short="kurt\nworst"),
    Column("ks_median", "KS median"),
    Column("ks_worst", "KS worst"),
    Column("rejected", "rejected", "share", short="re-\njected"),
    Column("zeros", "exact zeros", "share", short="zeros\nφ(s)"),
    Column("norm_ks_normal", "norms: KS normal", short="norm KS\nnormal"),
    Column("norm_ks_chi", "norms: KS chi", short="norm KS\nchi"),
    Column("norm_freedom", "norms: ν/k"),
)
"""Of the table of distributions, a row a layer and kind of vector."""

ASSUMPTION = (
    Column("layer", "layer", "text"),
    Column("module", "module", "text"),
    Column("activation", "φ", "text"),
    Column("outputs", "outputs m", "count"),
    Column("positions", "positions T", "count"),
    Column("samples", "samples", "count"),
    Column("columns", "columns", "count"),
    Column("isotropy_population", "isotropy of E[M]", short="isotropy\nmean"),
    Column("isotropy_mean", "of the mean of M"),
    Column("isotropy_samples", "of M, mean over samples", short="isotropy\nsamples"),
    Column("isotropy_limit", "of M, at most", short="at\nmost"),
    Column("note", "note", "text"),
)
"""Of the table that tests the assumption, a row a layer."""

DEFINITIONS = (
    Definition(
        "skewness",
        "E[(x − μ)³] / σ³",
        "Of a coordinate x over all samples and positions, with its mean μ and standard deviation σ; 0 for a "
        "normal distribution. The table has the median of its absolute value over the coordinates.",
    ),
    Definition(
        "kurtosis",
        "E[(x − μ)⁴] / σ⁴ − 3",
        "The excess kurtosis of a coordinate; 0 for a normal distribution, above 0 with heavier tails. Worst:"
        " of the coordinate where it is farthest from 0. Constant coordinates have neither.",
    ),
    Definition(
        "KS",
        "D = sup over x of │F_n(x) − Φ((x − x̄)/s)│",
        "Kolmogorov–Smirnov distance between the n values tested of a coordinate and the normal distribution "
        "with their mean x̄ and standard deviation s; 0 is a perfect fit. Worst: the largest of a layer.",
    ),
    Definition(
        "rejected",
        "share of the coordinates with p̃ < 0.05,  p̃_(i) = max over j ≤ i of min(1, (k − j + 1) p_(j))",
        "p: Lilliefors' test, which is that of Kolmogorov and Smirnov with an estimated mean and deviation. "
        "p̃: adjusted by Holm's method for the coordinates of the row that are not constant, k of them.",
    ),
    Definition(
        "exact zeros",
        "share of the values with x = 0",
        "Over coordinates, samples and positions. A normal distribution has none; a rectifier makes many.",
    ),
    Definition(
        "norms",
        "r = ‖x‖;  ν = 2 E[r²]² / Var[r²],  σ² = E[r²] / ν",
        "KS normal: distance of the norms from a normal distribution. KS chi: from σχ_ν, the scaled chi "
        "distribution with the same moments of r². ν/k is 1 for independent normal coordinates of mean 0 and "
        "one variance, smaller where coordinates depend on each other or their variances differ, larger "
        "where their means are not 0.",
    ),
    Definition(
        "isotropy",
        "(tr M)² / (m ‖M‖_F²),  M = Σ_t Σ_c q qᵀ",
        "q [m]: gradient at the layer's activated output at position t, sent back from column c of a root of "
        "the output Hessian. 1 where M is a multiple of I, 1/m where its rank is 1.",
    ),
    Definition(
        "isotropy of E[M]",
        "Σ_{n≠n'} tr M_n tr M_n' / (m Σ_{n≠n'} ⟨M_n, M_n'⟩)",
        "Of the expectation, from pairs of different samples: unbiased squares, so that it can by chance be "
        "a little above 1. That of the mean of M over N samples is too small where N is small.",
    ),
    Definition(
        "isotropy of M, mean over samples",
        "(1/N) Σ_n (tr M_n)² / (m ‖M_n‖_F²) ≤ min(1, C·T/m)",
        "What the assumption is about: every sample's own M. C columns at T positions give M a rank of at "
        "most C·T; that is the column “at most”.",
    ),
)
