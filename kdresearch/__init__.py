"""Knowledge distillation of text classifiers and of any torch modules; each name is loaded when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdresearch import losses as losses
    from kdresearch.bench.components import Component as Component
    from kdresearch.bench.distil import Distillation as Distillation
    from kdresearch.bench.distil import distil as distil
    from kdresearch.bench.library import RecordedTexts as RecordedTexts
    from kdresearch.bench.library import load_teacher as load_teacher
    from kdresearch.bench.library import record as record
    from kdresearch.bench.plan import Folder as Folder
    from kdresearch.bench.plan import HubModel as HubModel
    from kdresearch.bench.plan import Plan as Plan
    from kdresearch.bench.plan import Recipe as Recipe
    from kdresearch.bench.plan import TeacherPlan as TeacherPlan
    from kdresearch.bench.run import run as run
    from kdresearch.data.datamodule import TextDataModule as TextDataModule
    from kdresearch.data.files import Files as Files
    from kdresearch.data.hub import Hub as Hub
    from kdresearch.data.imdb import Imdb as Imdb
    from kdresearch.data.reviews import Reviews as Reviews
    from kdresearch.data.texts import Texts as Texts
    from kdresearch.data.tokenizers import NgramTokenizer as NgramTokenizer
    from kdresearch.data.tokenizers import PretrainedTokenizer as PretrainedTokenizer
    from kdresearch.data.tokenizers import SubwordTokenizer as SubwordTokenizer
    from kdresearch.data.tokenizers import TorchtextTokenizer as TorchtextTokenizer
    from kdresearch.data.tokenizers import WordTokenizer as WordTokenizer
    from kdresearch.errors import UserError as UserError
    from kdresearch.models.bilstm import BiLSTM as BiLSTM
    from kdresearch.models.model import TextModel as TextModel
    from kdresearch.models.ngram import NgramBag as NgramBag
    from kdresearch.models.ngram import NgramLinear as NgramLinear
    from kdresearch.models.textcnn import TextCNN as TextCNN
    from kdresearch.models.transformer import HubClassifier as HubClassifier
    from kdresearch.models.transformer import Transformer as Transformer
    from kdresearch.models.wrap import WrappedModel as WrappedModel
    from kdresearch.models.wrap import wrap as wrap
    from kdresearch.objectives.attention import AttentionMaps as AttentionMaps
    from kdresearch.objectives.attention import RelationHeads as RelationHeads
    from kdresearch.objectives.attention import ValueRelation as ValueRelation
    from kdresearch.objectives.contrastive import Contrastive as Contrastive
    from kdresearch.objectives.contrastive import Crd as Crd
    from kdresearch.objectives.gradient import Jacobian as Jacobian
    from kdresearch.objectives.hidden import Feature as Feature
    from kdresearch.objectives.hidden import Semantic as Semantic
    from kdresearch.objectives.logits import Correlation as Correlation
    from kdresearch.objectives.logits import Decoupled as Decoupled
    from kdresearch.objectives.logits import Label as Label
    from kdresearch.objectives.logits import LogitMse as LogitMse
    from kdresearch.objectives.logits import LogitsObjective as LogitsObjective
    from kdresearch.objectives.logits import SoftLabel as SoftLabel
    from kdresearch.objectives.logits import Standardised as Standardised
    from kdresearch.objectives.logits import TotalVariation as TotalVariation
    from kdresearch.objectives.logits import WeightedSoftLabel as WeightedSoftLabel
    from kdresearch.objectives.objective import Objective as Objective
    from kdresearch.objectives.relation import Pkt as Pkt
    from kdresearch.objectives.relation import RkdAngle as RkdAngle
    from kdresearch.objectives.relation import RkdDistance as RkdDistance
    from kdresearch.objectives.relation import SimilarityPreserving as SimilarityPreserving
    from kdresearch.package import Package as Package
    from kdresearch.reporting.api import Comparisons as Comparisons
    from kdresearch.reporting.api import compare as compare
    from kdresearch.strategies.adversarial import AdversarialDistiller as AdversarialDistiller
    from kdresearch.strategies.annealed import AnnealedDistiller as AnnealedDistiller
    from kdresearch.strategies.assistant import AssistantDistiller as AssistantDistiller
    from kdresearch.strategies.attention import AttentionDistiller as AttentionDistiller
    from kdresearch.strategies.combined import CombinedDistiller as CombinedDistiller
    from kdresearch.strategies.contrastive import ContrastiveDistiller as ContrastiveDistiller
    from kdresearch.strategies.correlation import CorrelationDistiller as CorrelationDistiller
    from kdresearch.strategies.decoupled import DecoupledDistiller as DecoupledDistiller
    from kdresearch.strategies.distiller import Distiller as Distiller
    from kdresearch.strategies.feature import FeatureDistiller as FeatureDistiller
    from kdresearch.strategies.generative import GenerativeDistiller as GenerativeDistiller
    from kdresearch.strategies.gradient import GradientDistiller as GradientDistiller
    from kdresearch.strategies.logit_mse import LogitMseDistiller as LogitMseDistiller
    from kdresearch.strategies.mutual import MutualDistiller as MutualDistiller
    from kdresearch.strategies.relation import RelationDistiller as RelationDistiller
    from kdresearch.strategies.self import SelfDistiller as SelfDistiller
    from kdresearch.strategies.semantic import SemanticDistiller as SemanticDistiller
    from kdresearch.strategies.soft_label import SoftLabelDistiller as SoftLabelDistiller
    from kdresearch.strategies.staged import StagedDistiller as StagedDistiller
    from kdresearch.strategies.standardised import StandardisedDistiller as StandardisedDistiller
    from kdresearch.strategies.supervised import SupervisedDistiller as SupervisedDistiller
    from kdresearch.strategies.total_variation import TotalVariationDistiller as TotalVariationDistiller
    from kdresearch.strategies.weighted_soft_label import WeightedSoftLabelDistiller as WeightedSoftLabelDistiller
    from kdresearch.structures import Batch as Batch
    from kdresearch.structures import Outputs as Outputs
    from kdresearch.structures import Signature as Signature
    from kdresearch.structures import Tokens as Tokens

_HOMES = {
    "Component": "bench.components",
    "Distillation": "bench.distil",
    "distil": "bench.distil",
    "RecordedTexts": "bench.library",
    "load_teacher": "bench.library",
    "record": "bench.library",
    "Folder": "bench.plan",
    "HubModel": "bench.plan",
    "Plan": "bench.plan",
    "Recipe": "bench.plan",
    "TeacherPlan": "bench.plan",
    "run": "bench.run",
    "TextDataModule": "data.datamodule",
    "Files": "data.files",
    "Hub": "data.hub",
    "Imdb": "data.imdb",
    "Reviews": "data.reviews",
    "Texts": "data.texts",
    "NgramTokenizer": "data.tokenizers",
    "PretrainedTokenizer": "data.tokenizers",
    "SubwordTokenizer": "data.tokenizers",
    "TorchtextTokenizer": "data.tokenizers",
    "WordTokenizer": "data.tokenizers",
    "UserError": "errors",
    "BiLSTM": "models.bilstm",
    "TextModel": "models.model",
    "NgramBag": "models.ngram",
    "NgramLinear": "models.ngram",
    "TextCNN": "models.textcnn",
    "HubClassifier": "models.transformer",
    "Transformer": "models.transformer",
    "WrappedModel": "models.wrap",
    "wrap": "models.wrap",
    "AttentionMaps": "objectives.attention",
    "RelationHeads": "objectives.attention",
    "ValueRelation": "objectives.attention",
    "Contrastive": "objectives.contrastive",
    "Crd": "objectives.contrastive",
    "Jacobian": "objectives.gradient",
    "Feature": "objectives.hidden",
    "Semantic": "objectives.hidden",
    "Correlation": "objectives.logits",
    "Decoupled": "objectives.logits",
    "Label": "objectives.logits",
    "LogitMse": "objectives.logits",
    "LogitsObjective": "objectives.logits",
    "SoftLabel": "objectives.logits",
    "Standardised": "objectives.logits",
    "TotalVariation": "objectives.logits",
    "WeightedSoftLabel": "objectives.logits",
    "Objective": "objectives.objective",
    "Pkt": "objectives.relation",
    "RkdAngle": "objectives.relation",
    "RkdDistance": "objectives.relation",
    "SimilarityPreserving": "objectives.relation",
    "Package": "package",
    "Comparisons": "reporting.api",
    "compare": "reporting.api",
    "AdversarialDistiller": "strategies.adversarial",
    "AnnealedDistiller": "strategies.annealed",
    "AssistantDistiller": "strategies.assistant",
    "AttentionDistiller": "strategies.attention",
    "CombinedDistiller": "strategies.combined",
    "ContrastiveDistiller": "strategies.contrastive",
    "CorrelationDistiller": "strategies.correlation",
    "DecoupledDistiller": "strategies.decoupled",
    "Distiller": "strategies.distiller",
    "FeatureDistiller": "strategies.feature",
    "GenerativeDistiller": "strategies.generative",
    "GradientDistiller": "strategies.gradient",
    "LogitMseDistiller": "strategies.logit_mse",
    "MutualDistiller": "strategies.mutual",
    "RelationDistiller": "strategies.relation",
    "SelfDistiller": "strategies.self",
    "SemanticDistiller": "strategies.semantic",
    "SoftLabelDistiller": "strategies.soft_label",
    "StagedDistiller": "strategies.staged",
    "StandardisedDistiller": "strategies.standardised",
    "SupervisedDistiller": "strategies.supervised",
    "TotalVariationDistiller": "strategies.total_variation",
    "WeightedSoftLabelDistiller": "strategies.weighted_soft_label",
    "Batch": "structures",
    "Outputs": "structures",
    "Signature": "structures",
    "Tokens": "structures",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("kdresearch.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'kdresearch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kdresearch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "losses"})
