"""The shop in Django's admin: its invoices, and a page that shows what became of its reactive tasks' runs."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse
from shop.celery import app

from celery_reactive import Page, Reactive, ReactiveError
from orders.models import Invoice, ReactiveRecord

STATUSES = ("pending", "processing", "processing_dirty", "completed", "failed")


class ReadOnlyAdmin(admin.ModelAdmin):
    """What a task writes is not changed by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes."""
        return False


@admin.register(Invoice)
class InvoiceAdmin(ReadOnlyAdmin):
    """Invoices as the tasks have written them."""

    list_display = ("order", "customer", "amount")


@admin.register(ReactiveRecord)
class ReactiveRecordAdmin(ReadOnlyAdmin):
    """The records of the reactive tasks, newest first, for those who may view `reactive record`."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show a page of records: `?status=failed` those of a status, `?after=…` the next page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        status = request.GET.get("status")
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "title": "Reactive records",
            "opts": self.opts,
            "statuses": STATUSES,
            "status": status,
            "page": self._page(request, [status] if status in STATUSES else list(STATUSES)),
        }
        return TemplateResponse(request, "orders/reactive_records.html", context)

    def _page(self, request: HttpRequest, statuses: list[str]) -> Page | None:
        after = request.GET.get("after")
        try:
            return Reactive.of(app).get_tasks(status=statuses, after=after, sort=("updatedAt", -1))
        except ReactiveError as error:
            messages.error(request, str(error))
            return None
