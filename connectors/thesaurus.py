"""Words that people use for one thing: plain lists, made by hand from what is said of accounts in general.

They are for whatever tools there are: none is about a tool, and what a service is known for is what everybody knows.
"""

import re
from collections.abc import Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), " email "),  # somebody's address says what it is
    (re.compile(r"[\w-]+\.(?:csv|docx?|html?|js|json|md|pdf|pptx?|py|sh|toml|ts|txt|xlsx?|ya?ml)\b"), " file "),
    (re.compile(r"\b[A-Z][A-Z0-9]+-\d+\b"), " issue "),
    (re.compile(r"https?://\S+"), " url "),
    (re.compile(r"(?<!\w)#[\w-]+"), " channel "),
    (re.compile(r"(?<!\w)@[\w.-]+"), " user "),
    (re.compile(r"[eE]-[mM]ail"), "email"),
)
"""What a thing in a request looks like, and what it is then taken for."""

PHRASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"\b{said}\b", re.IGNORECASE), meant)
    for said, meant in {
        r"get(?:ting)? rid of": "delete",
        r"thr(?:ow|owing|ew) (?:it |them )?(?:away|out)": "delete",
        r"(?:take|taking|took) (?:it |them )?(?:back|down)": "delete",
        r"money back|(?:give|giving|pay|paying|send|sending) (?:it |them )?back": "refund",
        r"came in|comes in|coming in": "receive",
        r"gett?(?:ing)? .{1,30}? out of": "remove",
        r"(?:tell|give|show) me": "show",
        r"call(?:ing)? off": "cancel",
        r"kick(?:ing)? off": "run",
        r"set(?:ting)? up": "create",
        r"look(?:ing|ed)? up": "find",
        r"shut(?:ting)? down|clos(?:e|ing) down": "close archive",
        r"on[- ]call|on duty": "oncall",
        r"text messages?": "sms",
        r"whats? ?app": "whatsapp",
        r"sign(?:ing|ed)? off": "approve",
        r"who am i": "whoami",
        r"let \w+ (?:see|into|in|join|have|read|edit)": "share invite access",
        r"let \w+ know": "send message",
        r"(?:is|are|was|went|goes) down": "outage",
        r"wak(?:e|ing) (?:\w+ )?up|wak(?:e|ing)": "incident oncall",
        r"(?:credit|debit) cards?": "card",
        r"clean(?:ing)? up": "delete",
        r"turn(?:ing|ed)? (?:into|to)": "create",
        r"catch(?:ing)? (?:me |us )?up (?:on|with)": "read",
        r"merge requests?|PRs?": "pull request",
    }.items()
)
"""Of several words together, what they mean."""

LOOKS = (
    *("what", "which", "who", "whose", "when", "where", "why", "how", "is", "are", "was", "were", "did", "does", "has"),
    *("had", "any", "show", "list", "see", "view", "find", "search", "look", "read", "fetch", "check", "count"),
    *("display", "browse", "tell me", "give me", "query", "compare", "summari[sz]e", "report on"),
    r"get(?! rid| .{1,30} out of)",
)
"""How a request begins that only wants to know."""

ACTS = (
    *("add", "answer", "append", "archive", "assign", "ban", "buy", "call", "cancel", "change", "clean", "clear"),
    *("close", "comment", "correct", "create", "delete", "dm", "draft", "edit", "end", "file", "fix", "forward", "get"),
    *("give", "hand", "invite", "jot", "kick", "kill", "leave", "log", "make", "mark", "merge", "move", "open", "post"),
    *("publish", "purge", "put", "refund", "remove", "rename", "reply", "report", "rerun", "restart", "run", "send"),
    *(
        "set",
        "share",
        "start",
        "stop",
        "tell",
        "text",
        "throw",
        "train",
        "trigger",
        "turn",
        "update",
        "upload",
        "write",
    ),
)
"""How a request begins that wants something done."""

STOP = _words(
    "a about am an and any anymore anyone anything are as at be been being but by can could did do does doing "
    "else ever every everyone everything for from had has have having he her here him his how i if in into is it its "
    "just let like me mine much my need needs no not now of off on one or our out over please right she should so "
    "some someone something than that the their them then there these they thing things this those to too up us "
    "today tomorrow yesterday tonight morning afternoon evening last latest recent recently old current currently "
    "very want wants was we were what when where who whose why will with would yet you your give gives got "
    "going go goes happen happened happening help keep try use used uses using work works working"
)
"""Words that say nothing of what is wanted."""

IRREGULAR: Mapping[str, str] = {
    "paid": "pay", "sent": "send", "said": "say", "wrote": "write", "written": "write", "made": "make", "told": "tell",
    "found": "find", "spent": "spend", "bought": "buy", "sold": "sell", "went": "go", "came": "come", "gave": "give",
    "given": "give", "took": "take", "taken": "take", "ran": "run", "built": "build", "left": "leave",
    "kept": "keep", "held": "hold", "met": "meet", "people": "person", "men": "man", "women": "woman",
    "analyses": "analysis", "statuses": "status", "cancelled": "cancel", "cancelling": "cancel",
}  # fmt: skip

ALIKE: tuple[str, ...] = (
    # what is done
    "list show see view display browse which overview every",
    "get read fetch retrieve view show see open check look inspect detail info pull",
    "find search query look locate lookup filter hunt track trace",
    "create add new make register write draft compose prepare enter insert jot log record",
    "create open file report raise log",
    "delete remove destroy erase trash bin discard drop wipe purge clear kill scrap eliminate",
    "update change edit modify set fix correct rename adjust replace move mark alter amend revise switch swap shift",
    "move shift reschedule postpone update change",
    "cancel stop end abort terminate halt quit unsubscribe kill suspend pause",
    "send post write tell publish notify announce inform dm ping remind forward deliver",
    "close resolve finish done complete finished solve fix",
    "archive retire hide",
    "merge land combine join",
    "run start trigger launch execute dispatch",
    "invite add join bring include admit",
    "comment reply answer respond say note feedback discussion",
    "say message write mention",
    "share grant permission access collaborator",
    "generate create ask complete prompt write summarise summarize translate",
    "schedule book plan arrange",
    "upload store stored uploaded attach",
    "mention say mentioned contain",
    "count number many total long length size",
    "block ban kick throw expel",
    "assign owner assignee responsible reassign delegate transfer hand give route escalate",
    "acknowledge ack",
    # what it is done to
    "email mail inbox mailbox",
    "issue ticket bug task problem defect story case request",
    "incident outage alert downtime emergency",
    "error exception crash failure fail",
    "repository repo codebase project",
    "commit change history code changed",
    "branch code review",
    "file document attachment",
    "file code source readme script",
    "document doc page note wiki article",
    "workflow pipeline action ci build deploy job test",
    "release version deploy",
    "charge payment pay transaction purchase card",
    "invoice bill pay unpaid",
    "subscription plan membership recurring monthly",
    "refund reimburse repay",
    "payout deposit withdrawal bank",
    "dispute chargeback contest fight complaint",
    "fee cost price spend bill",
    "balance money funds",
    "charge payment money income revenue earning sale receive",
    "customer client buyer shopper contact subscriber",
    "contact lead person",
    "deal opportunity sale",
    "company organisation organization account business",
    "order purchase sale sell",
    "product item article",
    "stock inventory",
    "user person member employee colleague teammate staff who coworker guest",
    "channel room chat conversation",
    "message post chat",
    "thread reply conversation",
    "server guild community",
    "sms text",
    "call phone ring dial",
    "phone telephone number mobile",
    "meeting event appointment call standup sync interview",
    "calendar event agenda schedule availability",
    "free busy available availability",
    "table database sheet spreadsheet base",
    "column field property attribute schema",
    "row record entry item task",
    "paragraph block text section line",
    "page content text note",
    "title name rename",
    "status state progress stage transition",
    "label tag category",
    "folder directory drive",
    "domain zone dns website site",
    "cache cdn",
    "key token secret credential password",
    "vector embedding embed",
    "moderation offensive abusive toxic harmful policy hateful",
    "train tune finetune training",
    "batch bulk",
    "model llm ai",
    "usage consumption stats statistics",
    "me myself whoami",
    "email address",
    "bounce undelivered delivered deliverable returned",
    "newsletter campaign marketing mailing",
    "unread new unanswered open waiting pending",
    "rota shift oncall schedule",
)
"""What can be said in place of another; a word may stand in several lines, and only its neighbours there count."""

MEANT: Mapping[str, str] = {"gpt": "openai", "chatgpt": "openai", "claude": "anthropic", "gh": "github"}
"""What a word of a request is taken for, whatever else the tools say."""

KNOWN_FOR: Mapping[str, str] = {
    "airtable": "table base spreadsheet record",
    "anthropic": "ai llm model",
    "calendar": "meeting appointment agenda event schedule free busy",
    "cloudflare": "dns domain website site www",
    "discord": "chat server community",
    "drive": "file document folder spreadsheet doc sheet slide",
    "gemini": "ai llm model",
    "github": "code repository repo",
    "gitlab": "code repository repo",
    "gmail": "mail email inbox mailbox",
    "hubspot": "crm contact lead deal sale customer",
    "jira": "ticket story epic sprint",
    "linear": "ticket story sprint",
    "notion": "wiki doc note",
    "openai": "ai llm model",
    "outlook": "mail email inbox mailbox",
    "pagerduty": "incident outage alert oncall emergency",
    "salesforce": "crm contact lead deal sale customer",
    "sendgrid": "newsletter campaign mail email",
    "sentry": "error crash exception bug",
    "shopify": "shop store order product sale sell",
    "slack": "chat",
    "stripe": "payment money card subscription",
    "twilio": "sms phone call",
    "zendesk": "support helpdesk customer complaint",
}
"""What people think of a service as, wherever they do not name it."""
