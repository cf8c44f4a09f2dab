"""What a person can mend: each of these carries a message that says how, and no traceback is shown for it."""

from connectors.errors import ConnectorError
from server.approval import ApprovalProblem
from server.audit import AuditError
from server.backup import BackupProblem
from server.budgets import BudgetProblem
from server.cli.clients import ClientError
from server.cli.terminal import NoTerminal, NotSure
from server.connections import ConnectionProblem
from server.database import DatabaseProblem
from server.http import BindProblem
from server.identity import IdentityProblem
from server.policy import RuleError
from server.rotation import RotationProblem
from server.rules import RuleProblem
from server.settings import SettingsProblem
from server.webhooks import ChannelProblem
from vault import VaultError

PROBLEMS: tuple[type[Exception], ...] = (
    ApprovalProblem,
    AuditError,
    BackupProblem,
    BindProblem,
    BudgetProblem,
    ChannelProblem,
    ClientError,
    ConnectionProblem,
    ConnectorError,
    DatabaseProblem,
    IdentityProblem,
    NoTerminal,
    NotSure,
    RotationProblem,
    RuleError,
    RuleProblem,
    SettingsProblem,
    VaultError,
)
