"""Which methods exist: one explicit table, one line each."""

from typing import Any, TypeVar

import pydantic

from workers.distill import errors
from workers.distill.config import descriptions, rules
from workers.distill.config.job import Task
from workers.distill.config.training import Training
from workers.distill.methods import combination
from workers.distill.methods.base import Method
from workers.distill.methods.datafree.cmi import CMI
from workers.distill.methods.datafree.dafl import DAFL
from workers.distill.methods.datafree.deepinversion import DeepInversion
from workers.distill.methods.datafree.dfad import DFAD
from workers.distill.methods.datafree.dfq import DFQ
from workers.distill.methods.datafree.fast import Fast
from workers.distill.methods.datafree.mad import MAD
from workers.distill.methods.datafree.nayer import NAYER
from workers.distill.methods.datafree.noise import Noise
from workers.distill.methods.datafree.spaceshipnet import SpaceshipNet
from workers.distill.methods.datafree.ssdkd import SSDKD
from workers.distill.methods.datafree.zskt import ZSKT
from workers.distill.methods.dense.cirkd import CIRKD
from workers.distill.methods.dense.crosskd import CrossKD
from workers.distill.methods.dense.cwd import CWD
from workers.distill.methods.dense.densepcka import DensePCKA
from workers.distill.methods.dense.fgd import FGD
from workers.distill.methods.dense.fgfi import FGFI
from workers.distill.methods.dense.frs import FRS
from workers.distill.methods.dense.headdkd import HeadDKD
from workers.distill.methods.dense.headkd import HeadKD
from workers.distill.methods.dense.ld import LD
from workers.distill.methods.dense.mgd import MGD
from workers.distill.methods.dense.mimic import Mimic
from workers.distill.methods.dense.pixeldist import PixelDIST
from workers.distill.methods.dense.pixeldkd import PixelDKD
from workers.distill.methods.dense.pixelkd import PixelKD
from workers.distill.methods.dense.pkd import PKD
from workers.distill.methods.dense.roidkd import ROIDKD
from workers.distill.methods.dense.roikd import ROIKD
from workers.distill.methods.dense.skd import SKD
from workers.distill.methods.feature.at import AT
from workers.distill.methods.feature.catkd import CATKD
from workers.distill.methods.feature.embedkd import EmbedKD
from workers.distill.methods.feature.fitnet import FitNet
from workers.distill.methods.feature.kdsvd import KDSVD
from workers.distill.methods.feature.nst import NST
from workers.distill.methods.feature.ofd import OFD
from workers.distill.methods.feature.reviewkd import ReviewKD
from workers.distill.methods.feature.simkd import SimKD
from workers.distill.methods.feature.srrl import SRRL
from workers.distill.methods.feature.vid import VID
from workers.distill.methods.federated.centralised import Centralised
from workers.distill.methods.federated.dsfl import DSFL
from workers.distill.methods.federated.faug import FAug
from workers.distill.methods.federated.fd import FD
from workers.distill.methods.federated.fedavg import FedAvg
from workers.distill.methods.federated.feddf import FedDF
from workers.distill.methods.federated.feddistill import FedDistill
from workers.distill.methods.federated.fedensemble import FedEnsemble
from workers.distill.methods.federated.fedgen import FedGen
from workers.distill.methods.federated.fedmd import FedMD
from workers.distill.methods.federated.fedproto import FedProto
from workers.distill.methods.federated.fedprox import FedProx
from workers.distill.methods.federated.local import Local
from workers.distill.methods.logit.ce import CE
from workers.distill.methods.logit.ctkd import CTKD
from workers.distill.methods.logit.dist import DIST
from workers.distill.methods.logit.dkd import DKD
from workers.distill.methods.logit.fkd import FKD
from workers.distill.methods.logit.kd import KD
from workers.distill.methods.logit.labelsmoothing import LabelSmoothing
from workers.distill.methods.logit.linear_probe import LinearProbe
from workers.distill.methods.logit.mlld import MLLD
from workers.distill.methods.logit.nkd import NKD
from workers.distill.methods.relation.cc import CC
from workers.distill.methods.relation.crd import CRD
from workers.distill.methods.relation.mmd import MMD
from workers.distill.methods.relation.pcka import PCKA
from workers.distill.methods.relation.pkt import PKT
from workers.distill.methods.relation.rcka import RCKA
from workers.distill.methods.relation.rkd import RKD
from workers.distill.methods.relation.sp import SP
from workers.distill.networks.interface import Network

Checked = TypeVar("Checked", bound=Method.Params)

METHODS: dict[str, type[Method]] = {
    "at": AT,
    "catkd": CATKD,
    "cc": CC,
    "ce": CE,
    "centralised": Centralised,
    "cirkd": CIRKD,
    "cmi": CMI,
    "crd": CRD,
    "crosskd": CrossKD,
    "ctkd": CTKD,
    "cwd": CWD,
    "dafl": DAFL,
    "deepinversion": DeepInversion,
    "densepcka": DensePCKA,
    "dfad": DFAD,
    "dfq": DFQ,
    "dist": DIST,
    "dkd": DKD,
    "dsfl": DSFL,
    "embedkd": EmbedKD,
    "fast": Fast,
    "faug": FAug,
    "fd": FD,
    "fedavg": FedAvg,
    "feddf": FedDF,
    "feddistill": FedDistill,
    "fedensemble": FedEnsemble,
    "fedgen": FedGen,
    "fedmd": FedMD,
    "fedproto": FedProto,
    "fedprox": FedProx,
    "fgd": FGD,
    "fgfi": FGFI,
    "fitnet": FitNet,
    "fkd": FKD,
    "frs": FRS,
    "headdkd": HeadDKD,
    "headkd": HeadKD,
    "kd": KD,
    "kdsvd": KDSVD,
    "labelsmoothing": LabelSmoothing,
    "linear_probe": LinearProbe,
    "ld": LD,
    "local": Local,
    "mad": MAD,
    "mgd": MGD,
    "mimic": Mimic,
    "mlld": MLLD,
    "mmd": MMD,
    "nayer": NAYER,
    "nkd": NKD,
    "noise": Noise,
    "nst": NST,
    "ofd": OFD,
    "pcka": PCKA,
    "pixeldist": PixelDIST,
    "pixeldkd": PixelDKD,
    "pixelkd": PixelKD,
    "pkd": PKD,
    "pkt": PKT,
    "rcka": RCKA,
    "reviewkd": ReviewKD,
    "rkd": RKD,
    "roidkd": ROIDKD,
    "roikd": ROIKD,
    "simkd": SimKD,
    "skd": SKD,
    "sp": SP,
    "spaceshipnet": SpaceshipNet,
    "srrl": SRRL,
    "ssdkd": SSDKD,
    "vid": VID,
    "zskt": ZSKT,
}


def find(choice: dict[str, Any]) -> tuple[type[Method], Method.Params]:
    """Return the method that a config names, and its checked hyper-parameters.

    Raises `BadRecipe` for an unknown method, for a value that is not accepted, and for values that
    contradict each other.
    """
    name = choice.get("name")
    given = {key: value for key, value in choice.items() if key != "name"}
    if name == combination.NAME:
        return _combined(given)
    if name not in METHODS:
        known = ", ".join([*sorted(METHODS), combination.NAME])
        raise errors.BadRecipe(
            f"no method {name!r} exists; choose one of {known}", method=name, field="method/name"
        )
    return METHODS[name], _checked(METHODS[name], METHODS[name].Params, given)


def _combined(given: dict[str, Any]) -> tuple[type[Method], Method.Params]:
    params = _checked(combination.Combination, combination.Combination.Params, given)
    parts = []
    for place, wanted in enumerate(params.methods):
        where = f"method combine: methods.{place}"
        weight = wanted.get("weight", 1.0)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 <= weight <= 1e6
        ):
            raise errors.BadRecipe(
                f"{where}.weight: must be between 0 and 1e6, got {weight!r}",
                field=f"method/methods/{place}/weight",
            )
        method = METHODS.get(str(wanted.get("name")))
        if method is None or not method.combines:
            known = ", ".join(sorted(name for name in METHODS if METHODS[name].combines))
            raise errors.BadRecipe(
                f"{where}.name: {wanted.get('name')!r} is no method that combines; choose one of "
                f"{known}",
                field=f"method/methods/{place}/name",
            )
        for field, why in descriptions.OF_THE_WHOLE.items():
            if field in wanted:
                raise errors.BadRecipe(
                    f"{where}.{field}: {why}; set method.{field} instead",
                    field=f"method/methods/{place}/{field}",
                )
        fields = {key: value for key, value in wanted.items() if key not in ("name", "weight")}
        own = _checked(method, method.Params, fields, place)
        parts.append(combination.Part(float(weight), method, own))
    return combination.of(parts), params


def _checked(
    method: type[Method], accepted: type[Checked], given: dict[str, Any], place: int | None = None
) -> Checked:
    """Return hyper-parameters that are right, also together; `place`: of a part, from 0."""
    try:
        params = accepted.model_validate(given)
    except pydantic.ValidationError as error:
        above = ("method",) if place is None else ("method", "methods", str(place))
        raise errors.BadRecipe(
            f"method {method.name}: {first_complaint(error)}",
            field=first_field(error, given, *above),
        ) from None
    described, values = method.describe(), params.model_dump()
    violations = (
        rules.of_method(described, values)
        if place is None
        else rules.of_part(described, values, place)
    )
    errors.refuse(violations, method=method.name)
    return params


def build(choice: dict[str, Any], student: Network, teacher: Network | None) -> Method:
    """Build the method that a recipe names for these two networks."""
    method, params = find(choice)
    return method(params, student, teacher)


def check_task(choice: dict[str, Any], task: Task) -> None:
    """Raise `BadRecipe` unless a method, and each of its hyper-parameters, is for this task."""
    method, _ = find(choice)
    errors.refuse(rules.of_task(method.describe(), task), method=method.name, task=task)
    errors.refuse(
        rules.of_params_and_task(choice, task, lambda name: METHODS[name].describe()),
        method=method.name,
        task=task,
    )


def check(method: type[Method], training: Training) -> None:
    """Raise `BadRecipe` unless a method can be trained so."""
    errors.refuse(
        rules.of_method_and_training(method.describe(), training.model_dump()), method=method.name
    )


def first_complaint(error: pydantic.ValidationError) -> str:
    """Return the first problem as one sentence that names field and value."""
    problem = error.errors()[0]
    if problem["type"] == "contradiction":
        return problem["msg"]
    where = ".".join(str(part) for part in problem["loc"]) or "the whole"
    value = "" if problem["type"] == "missing" else f", got {problem['input']!r}"[:200]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {problem['msg']}{value}{more}"


def first_field(error: pydantic.ValidationError, given: Any, *above: str) -> str:  # Any: JSON
    """Return the path of the first field at fault in a config, such as `training/epochs`.

    `above` leads to what was validated, `given`.
    """
    problem = error.errors()[0]
    if problem["type"] == "contradiction":
        return str(problem["ctx"]["field"])
    path, node = list(above), given
    for place, step in enumerate(problem["loc"], 1):
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            if place < len(problem["loc"]):
                continue  # which kind of several a value is: no field of the config
        path.append(str(step))
    return "/".join(path)
