"""The shop's addresses."""

from django.contrib import admin
from django.urls import path
from orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", views.place),
    path("orders/<str:order_id>/", views.show),
    path("orders/<str:order_id>/pay/", views.pay),
]
