"""Other processes on the card: a game, a renderer, somebody else's model.

Rule: our own engines never count, nor those of another node on this machine (two nodes would send each other away),
nor programs on the list of those that only draw the desktop. A process whose name cannot be seen from here (a container
has process ids of its own, and the driver reports the machine's) is nobody's: it might be ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import psutil

from node.cards import Card, CardProcess, Cards
from node.guard.names import named_in
from node.guard.sense import QUIET, Reading, Says

DESKTOP_PROGRAMS = (
    # Linux: display servers, compositors, shells
    "Xorg", "X", "Xwayland", "gnome-shell", "gnome-*", "kwin*", "plasmashell", "ksplashqml", "sway", "hyprland",
    "weston", "mutter*", "cinnamon", "xfwm4", "marco", "compiz", "gdm*", "sddm*", "lightdm*", "xdg-desktop-*",
    "nautilus", "dolphin", "krunner", "ibus-*", "systemsettings", "cosmic-*", "waybar", "picom",
    # Windows: what draws the desktop, whether anybody plays or not
    "dwm", "explorer", "csrss", "winlogon", "logonui", "searchhost", "searchapp", "startmenuexperiencehost",
    "shellexperiencehost", "shellhost", "textinputhost", "systemsettings", "lockapp", "applicationframehost", "widgets",
    "widgetservice", "nvcontainer", "nvidia*", "nvdisplay*", "crossdeviceresume", "phoneexperiencehost", "taskmgr",
    "snippingtool", "rtkuwp", "radeonsoftware", "igcc*", "powertoys*", "sihost", "video.ui", "xboxpcapp*", "gamebar*",
    # browsers, and programs that are made of one
    "firefox*", "librewolf", "chrome*", "chromium*", "msedge*", "msedgewebview2", "brave*", "opera*", "vivaldi*",
    "safari", "arc", "zen*", "electron", "code", "code-*", "codium", "cursor", "slack", "discord*", "teams", "ms-teams",
    "spotify", "signal*", "telegram*", "whatsapp*", "thunderbird", "obsidian", "steamwebhelper", "steam",
    "epicgameslauncher", "epicwebhelper", "galaxyclient*", "zoom", "konsole", "kitty", "alacritty", "ghostty",
    "wezterm*", "windowsterminal", "libreoffice*", "soffice*", "onedrive*",
)  # fmt: skip


ENGINE_MODULE = "node.engines.child"


@dataclass(frozen=True, slots=True)
class CardLimits:
    """What on a card counts as use by the owner."""

    compute_mib: int = 256  # a computing process has to hold more than this
    graphics_mib: int = 128  # a drawing one; one whose memory nobody knows always counts
    busy_percent: int = 60  # of the card's time, by what nobody lists: in two looks running
    ignore: Sequence[str] = ()  # beside DESKTOP_PROGRAMS


def is_engine(pid: int) -> bool:
    """Is this process an engine of some node on this machine?"""
    try:
        return ENGINE_MODULE in psutil.Process(pid).cmdline()
    except (psutil.Error, OSError, ValueError):
        return False


class CardSense:
    """See `Sense`. `own` gives the process ids of our engines."""

    name = "card"

    def __init__(
        self,
        cards: Cards,
        own: Callable[[], Collection[int]],
        limits: CardLimits,
        ours: Callable[[Card], bool],
        is_engine: Callable[[int], bool] = is_engine,
    ) -> None:
        """`ours`: has the node a model on this card (whose work is in the card's utilisation)? `is_engine`: is this
        process any node's engine?"""
        self._is_engine = is_engine
        self._cards = cards
        self._own = own
        self._limits = limits
        self._ours = ours
        self._busy_before: set[str] = set()

    def read(self) -> Reading:
        """See `Sense`."""
        cards = self._cards.cards()
        if not cards:
            return Reading(Says.UNKNOWN, f"no card to look at: {self._cards.about}")
        reasons, blind = [], []
        for card in cards:
            processes = self._cards.processes(card)
            if processes is None or any(self._hidden(process) for process in processes):
                blind.append(card.name)
            users = [process for process in processes or () if self._counts(process)]
            reasons += [_describe(process, card) for process in users]
            if not users:
                reasons += self._busy(card)
        if reasons:
            return Reading(Says.PAUSE, "; ".join(reasons[:3]))
        return Reading(Says.UNKNOWN, f"{blind[0]} does not say who uses it, not to this process") if blind else QUIET

    def _counts(self, process: CardProcess) -> bool:
        limits = self._limits
        if process.pid in self._own() or names_nobody(process.name) or named_in(process.name, limits.ignore):
            return False
        least = limits.graphics_mib if process.use == "graphics" else limits.compute_mib
        large = process.use == "graphics" if process.mib is None else process.mib > least
        busy = (process.busy_percent or 0) >= limits.busy_percent
        return (large or busy) and not self._is_engine(process.pid)

    def _hidden(self, process: CardProcess) -> bool:
        """Somebody large whom nobody here can name: the machine's own process, seen from a container."""
        return not process.name and process.pid not in self._own() and (process.mib or 0) > self._limits.compute_mib

    def _busy(self, card: Card) -> list[str]:
        """Work on a card where we have nothing, by whoever it may be. One look is a video's first picture."""
        percent = self._cards.utilisation(card)
        busy = percent is not None and percent >= self._limits.busy_percent and not self._ours(card)
        again = busy and card.uuid in self._busy_before
        (self._busy_before.add if busy else self._busy_before.discard)(card.uuid)
        return [f"{card.name} is {percent} % busy with what is not ours"] if again else []


def names_nobody(name: str) -> bool:
    """True for a name that only draws the desktop, or that cannot be seen."""
    return not name or named_in(name, DESKTOP_PROGRAMS)


def _describe(process: CardProcess, card: Card) -> str:
    size = "" if process.mib is None else f" with {process.mib} MiB"
    return f"{process.name} (process {process.pid}) uses {card.name}{size}"
